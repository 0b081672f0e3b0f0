"""The values of the cut model's parameters, cut from the files of the original one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bough.storage.safetensors_file import TensorFile
from bough.streaming.names import Names, Part
from bough.streaming.pieces import Piece, Pieces, cut_rows


@dataclass(frozen=True, slots=True)
class PlacedPiece:
    """A piece, the file to read it from, and the part of the cut model's parameter that it becomes."""

    piece: Piece
    file: Path
    part: Part


class CutWeights:
    """The parameters and saved buffers of a cut model.

    Args:
        folder: of the original's files.
        pieces: what the cut makes of each tensor.
        names: of the cut model.
        on_read: called with the number of bytes of each parameter that was read.
    """

    def __init__(
        self, folder: Path, pieces: Pieces, names: Names, on_read: Callable[[int], object] = lambda size: None
    ) -> None:  # fmt: skip
        self._names, self._on_read = names, on_read
        self._pieces: dict[str, list[PlacedPiece]] = {}
        for file, some in pieces.by_file.items():
            for piece in some:
                found = names.find(piece.name)
                assert found is not None  # `pieces_of` has checked it
                placed = PlacedPiece(piece, piece.file or folder / file, found[0])
                self._pieces.setdefault(names.same[found[0].parameter], []).append(placed)

    def pieces(self, name: str) -> list[PlacedPiece]:
        """Return the pieces of a parameter."""
        return self._pieces[self._names.same[name]]

    def size(self, name: str) -> int:
        """Return the bytes that are read for a parameter."""
        return sum(p.piece.entry.end - p.piece.entry.start for p in self.pieces(name))

    def tensor(self, name: str) -> Tensor:
        """Return the values of a parameter or saved buffer.

        Raises:
            CheckpointError: a file can not be read.
        """
        pieces = self.pieces(name)
        shape = self._names.parameters[name]
        value = torch.empty(shape, dtype=pieces[0].piece.entry.dtype)
        for placed in pieces:
            with TensorFile(placed.file) as file:
                value[placed.part.index] = cut_rows(placed.piece, file.rows(placed.piece.entry), 0)
        self._on_read(self.size(name))
        return value
