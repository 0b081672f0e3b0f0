"""Cut files written tensor by tensor, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from bough.storage.atomic import explained, sync
from bough.storage.safetensors_file import TensorFile, header_bytes
from bough.storage.tensors import raw_bytes
from bough.streaming.ahead import ahead
from bough.streaming.pieces import Piece, cut_rows
from bough.streaming.write_behind import WAITING, WriteBehind

_CHUNK = 1 << 23  # bytes that are read at a time


def write_cut_file(
    source: Path, target: Path, pieces: Sequence[Piece], metadata: dict[str, str], on_read: Callable[[int], object]
) -> str:
    """Write the pieces of a file, in the file's order, and return the sha256 of what was written.

    Args:
        source: the file to cut, for the pieces that name no other file.
        target: the new file; put in place when it is complete and synced.
        pieces: what is kept of the tensors.
        metadata: texts in the header.
        on_read: called with the number of bytes of `source` that have been dealt with since the last call.

    Raises:
        CheckpointError: `source` can not be read.
        WriteError: `target` can not be written; no part of it is left.
    """
    part = target.with_name(f".{target.name}.part")
    buffers = cycle([torch.empty(_CHUNK, dtype=torch.uint8) for _ in range(WAITING + 4)])  # waiting, written, cut, and read
    try:
        with explained(target), TensorFile(source) as file, open(part, "wb", buffering=0) as out, WriteBehind(out) as behind:
            behind.write(header_bytes([(p.name, p.entry.code, p.shape) for p in pieces], metadata))
            blocks = (block for piece in pieces for block in _blocks(file, piece, buffers, on_read))
            with closing(ahead(blocks)) as read:
                for piece, rows, first in read:
                    behind.write(raw_bytes(cut_rows(piece, rows, first)).numpy().data)
        with explained(target):
            os.replace(part, target)
            sync(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return behind.hexdigest()


def _blocks(
    file: TensorFile, piece: Piece, buffers: Iterator[Tensor], on_read: Callable[[int], object]
) -> Iterator[tuple[Piece, Tensor, int]]:  # fmt: skip
    """Yield (piece, rows of its tensor, index of the first of them) for all rows that are not dropped."""
    if piece.file is not None and piece.file != file.path:
        with TensorFile(piece.file) as other:
            yield from _blocks(other, piece, buffers, on_read)
        return
    entry = piece.entry
    rows = entry.shape[0] if entry.shape else 1
    width = (entry.end - entry.start) // max(rows, 1)
    step = max(1, _CHUNK // max(width, 1))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        kept = piece.kept[0] if piece.kept else None
        if kept is None or ((kept >= first) & (kept < last)).any():
            yield piece, file.rows(entry, first, last, out=next(buffers)), first
        on_read((last - first) * width)
