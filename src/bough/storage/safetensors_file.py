"""Parts of safetensors files: the header, rows of one tensor, and files that are written tensor by tensor.

The safetensors package maps a whole file into memory, and writes a file from tensors that are all in memory. A file is a length
(8 bytes, little-endian), a header of that length (JSON: dtype, shape and place of each tensor), and the tensors, row-major.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bough.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # bytes: the limit of the safetensors package
_AHEAD = 1 << 24  # bytes behind those that were read, which the system is asked to read meanwhile
_ALIGNED = 8  # the header is padded with spaces to a multiple of this


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: `start` and `end` are bytes from the beginning of the file."""

    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the code, such as BF16, stands for."""
        return _DTYPES[self.code]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds, in the order of its bytes. `metadata`: texts that the writer left."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors file, or of a dtype that is not known here.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(size - 8, _LONGEST_HEADER):
                raise CheckpointError(f"{path} is truncated, or no safetensors file: its header is not complete")
            data = json.loads(file.read(length))
        metadata = data.pop("__metadata__", {})
        entries = tuple(sorted((_entry(n, d, 8 + length) for n, d in data.items()), key=lambda e: (e.start, e.end)))
    except OSError as error:
        raise CheckpointError(f"{path} can not be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its header can not be read ({type(error).__name__}: {error})") from None
    _check(path, entries, size)
    return Header(entries, dict(metadata))


def _entry(name: str, data: Mapping[str, Any], offset: int) -> Entry:
    start, end = data["data_offsets"]
    return Entry(name, str(data["dtype"]), tuple(map(int, data["shape"])), offset + int(start), offset + int(end))


def _check(path: Path, entries: Sequence[Entry], size: int) -> None:
    for e in entries:
        if e.code not in _DTYPES:
            raise CheckpointError(f"{path}: {e.name} is of the dtype {e.code}, and can be one of {', '.join(_DTYPES)}")
        if e.end - e.start != prod(e.shape) * e.dtype.itemsize or min((e.start, *e.shape), default=0) < 0:
            raise CheckpointError(f"{path} is damaged: {e.name} has the shape {list(e.shape)} and {e.end - e.start} bytes")
    last = max((e.end for e in entries), default=0)
    if last > size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes, and its header says {last}. Copy the file again")


class TensorFile:
    """A safetensors file open for reading parts of its tensors; use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = 0  # where the bytes end that the system was asked to read
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path} can not be read: {error.strerror}") from None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def rows(self, entry: Entry, first: int = 0, last: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """Return rows `first` to `last` - 1 (indices of dim 0) of a tensor.

        Args:
            entry: the tensor; one without dims is returned whole.
            first, last: the rows; all that follow `first` if `last` is None.
            out: uint8 tensor whose memory is used if it is large enough; the result is valid until its next use.

        Raises:
            CheckpointError: the bytes can not be read.
        """
        rows = entry.shape[0] if entry.shape else 1
        last = rows if last is None else last
        width = (entry.end - entry.start) // max(rows, 1)
        size = (last - first) * width
        raw = out[:size] if out is not None and out.numel() >= size else torch.empty(size, dtype=torch.uint8)
        self._fill(raw.numpy().data, entry.start + first * width)
        self._read_ahead(entry.start + last * width)
        shape = (last - first, *entry.shape[1:]) if entry.shape else ()
        return raw.view(entry.dtype).view(shape)

    def blocks(self, entry: Entry, buffers: Sequence[Tensor], step: int) -> Iterator[Tensor]:
        """Yield the rows of a tensor in order, in blocks that fit into a buffer and have a multiple of `step` rows.

        Args:
            entry: the tensor.
            buffers: uint8 tensors of equal size, which are filled in turn; a block is valid until its buffer's turn comes.
            step: the number of rows of which a block has a multiple; all of them in the last block.

        Raises:
            CheckpointError: the bytes can not be read.
        """
        width = (entry.end - entry.start) // max(entry.shape[0], 1)
        count = max(buffers[0].numel() // max(step * width, 1), 1) * step
        for first, buffer in zip(range(0, entry.shape[0], count), cycle(buffers), strict=False):
            yield self.rows(entry, first, min(first + count, entry.shape[0]), out=buffer)

    def _read_ahead(self, end: int) -> None:
        """Ask for the bytes behind `end`, unless at least half of them were asked for before."""
        if hasattr(os, "posix_fadvise") and not end < self._asked - _AHEAD // 2 < end + _AHEAD:
            os.posix_fadvise(self._descriptor, end, _AHEAD, os.POSIX_FADV_WILLNEED)
            self._asked = end + _AHEAD

    def _fill(self, target: memoryview, position: int) -> None:
        while len(target):
            try:
                count = os.preadv(self._descriptor, [target], position)
            except OSError as error:
                raise CheckpointError(f"{self.path} can not be read: {error.strerror}") from None
            if not count:
                raise CheckpointError(f"{self.path} is truncated: it ends at byte {position}. Copy the file again")
            target, position = target[count:], position + count


def header_bytes(tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a file, up to the first tensor's bytes.

    Args:
        tensors: (name, dtype's code, shape) in the order in which their bytes follow.
        metadata: texts to leave in the file.
    """
    data: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, code, shape in tensors:
        end = place + prod(shape) * _DTYPES[code].itemsize
        data[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(data, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return struct.pack("<Q", len(text)) + text
