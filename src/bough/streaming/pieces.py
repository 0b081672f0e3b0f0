"""What a plan makes of each tensor of a checkpoint: decided for all of them before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import CheckpointError, PlanError
from bough.planning import Plan, Scale
from bough.recovery import name_after_cut
from bough.storage.safetensors_file import Entry
from bough.storage.tensors import taken
from bough.streaming.names import Names, Part, Style
from bough.streaming.shards import Shards

Kept = NDArray[np.int64] | None  # None: all


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """A tensor of a checkpoint, and what is kept of it.

    Attributes:
        entry: the tensor in its file.
        name: its name in the cut model's checkpoint.
        shape: its shape there.
        kept: of each dim, the indices kept.
        scales: (dim, indices among those kept, factor) to multiply by, in this order; dim -1: the whole tensor.
        file: the file that has the tensor; None for the checkpoint's own file.
    """

    entry: Entry
    name: str
    shape: tuple[int, ...]
    kept: tuple[Kept, ...]
    scales: tuple[tuple[int, NDArray[np.int64], float], ...]
    file: Path | None = None

    @property
    def size(self) -> int:
        """Bytes in the cut model's checkpoint."""
        return prod(self.shape) * self.entry.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class Pieces:
    """`by_file`: {file: its pieces, in the order of their bytes}. `unknown`: tensors that the model does not have."""

    by_file: dict[str, tuple[Piece, ...]]
    unknown: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the cut model's checkpoint."""
        return sum(p.size for pieces in self.by_file.values() for p in pieces)

    def replaced(self, tensors: Mapping[str, tuple[Path, Entry]]) -> Pieces:
        """Return the pieces with some of them read from other files, where they are as they will be written.

        Args:
            tensors: {name in the cut model's checkpoint: (file, the tensor in it)}.
        """

        def new(piece: Piece) -> Piece:
            if piece.name not in tensors:
                return piece
            file, entry = tensors[piece.name]
            return replace(piece, entry=entry, kept=(None,) * len(entry.shape), scales=(), file=file)

        return replace(self, by_file={file: tuple(map(new, pieces)) for file, pieces in self.by_file.items()})


@dataclass(frozen=True, eq=False, slots=True)
class Placed:
    """The tensors of a checkpoint as parts of a model's parameters. `unknown`: those that are no part of any."""

    parts: dict[str, tuple[Part, Style]]
    unknown: tuple[str, ...]


def placed(names: Names, shards: Shards) -> Placed:
    """Return where in the model each tensor of a checkpoint belongs.

    Raises:
        CheckpointError: a tensor has another shape than in the model, or parameters of the model are in no file.
    """
    parts: dict[str, tuple[Part, Style]] = {}
    unknown: list[str] = []
    covered: dict[str, int] = {}
    for name, entry in shards.entries.items():
        found = names.find(name)
        if found is None:
            unknown.append(name)
            continue
        if found[0].shape != entry.shape:
            raise CheckpointError(
                f"{shards.folder / shards.files[name]} does not fit config.json: {name} has the shape {list(entry.shape)} "
                f"there, and {list(found[0].shape)} in the model"
            )
        parts[name] = found
        first = names.same[found[0].parameter]
        covered[first] = max(covered.get(first, 0), 0) + prod(entry.shape)
    lacking = [n for n, shape in names.parameters.items() if names.same[n] == n and covered.get(n, 0) < prod(shape)]
    if lacking:
        raise CheckpointError(
            f"{shards.folder} lacks weights of the model that config.json describes: {lacking[0]} is in no file "
            f"({len(lacking)} such parameters)"
        )
    return Placed(parts, tuple(unknown))


def pieces_of(plan: Plan, before: Names, after: Names, shards: Shards, where: Placed) -> Pieces:
    """Return what a plan makes of each tensor.

    Args:
        plan: the plan.
        before, after: names of the model, and of the cut model.
        shards: the files.
        where: what `placed` gives.

    Raises:
        PlanError: the result would not be the cut model's checkpoint.
    """
    dims, scales = _by_first(plan, before)
    by_file: dict[str, tuple[Piece, ...]] = {}
    for file, header in shards.headers.items():
        found = (
            _piece(e, *where.parts[e.name], dims, scales, before, after, plan) for e in header.entries if e.name in where.parts
        )
        by_file[file] = tuple(p for p in found if p is not None)
    result = Pieces({f: p for f, p in by_file.items() if p}, where.unknown)
    _check(result, after)
    return result


def _by_first(plan: Plan, names: Names) -> tuple[dict[str, dict[int, NDArray[np.int64]]], dict[str, list[Scale]]]:
    """Return what the plan keeps and scales, by the first of the names that tied parameters have."""
    arrays: dict[int, NDArray[np.int64]] = {}

    def array(indices: list[int]) -> NDArray[np.int64]:
        return arrays.setdefault(id(indices), np.array(indices, dtype=np.int64))

    kept = {names.same.get(n, n): {d: array(i) for d, i in dims.items()} for n, dims in plan.kept.items()}
    scales: dict[str, list[Scale]] = {}
    for scale in plan.scales:
        scales.setdefault(names.same.get(scale.name, scale.name), []).append(scale)
    return kept, scales


def _piece(
    entry: Entry, part: Part, style: Style, kept: Mapping[str, Mapping[int, NDArray[np.int64]]],
    scales: Mapping[str, Sequence[Scale]], before: Names, after: Names, plan: Plan,
) -> Piece | None:  # fmt: skip
    """Return what becomes of a tensor; None if it goes."""
    own = part.parameter
    if any(own.startswith(f"{layer}.") for layer in plan.left_out):
        return None
    dims = kept.get(before.same[own], {})
    new: list[Any] = []
    indices: list[Kept] = []
    for d, place in enumerate(part.dims):
        units = dims.get(d)
        if isinstance(place, int):
            at = place if units is None else int(np.searchsorted(units, place))
            if units is not None and (at == len(units) or units[at] != place):
                return None
            new.append(at)
            continue
        low, high = place if units is None else np.searchsorted(units, place)
        new.append((int(low), int(high)))
        inside = None if units is None else units[low:high] - place[0]
        indices.append(None if inside is not None and len(inside) == place[1] - place[0] else inside)
    target = Part(name_after_cut(own, plan), tuple(new))
    factors = _factors(part, scales.get(before.same[own], ()), indices)
    try:
        name = after.name(target, style)
    except KeyError:
        raise PlanError(f"{entry.name}: the cut model's checkpoint has no such part ({target})") from None
    return Piece(entry, name, target.shape, tuple(indices), factors)


def _factors(
    part: Part, scales: Sequence[Scale], kept: Sequence[Kept]
) -> tuple[tuple[int, NDArray[np.int64], float], ...]:  # fmt: skip
    """Return a plan's factors as factors of a part's kept indices."""
    found: list[tuple[int, NDArray[np.int64], float]] = []
    ranged = [d for d, place in enumerate(part.dims) if isinstance(place, tuple)]
    for scale in scales:
        place = part.dims[scale.dim]
        if isinstance(place, int):
            if place in scale.indices:
                found.append((-1, np.zeros(0, dtype=np.int64), scale.factor))
            continue
        dim = ranged.index(scale.dim)
        units = kept[dim]
        here = np.arange(place[1] - place[0]) if units is None else units
        places = np.flatnonzero(np.isin(here + place[0], np.array(scale.indices)))
        if len(places):
            found.append((dim, places, scale.factor))
    return tuple(found)


def _check(pieces: Pieces, after: Names) -> None:
    """Check that the pieces are all of the cut model's parameters, in its shapes."""
    covered: dict[str, int] = {}
    for piece in (p for some in pieces.by_file.values() for p in some):
        found = after.find(piece.name)
        if found is None or found[0].shape != piece.shape:
            raise PlanError(
                f"{piece.entry.name} would become {piece.name} of shape {list(piece.shape)}, unlike the cut model's"
            )
        first = after.same[found[0].parameter]
        covered[first] = covered.get(first, 0) + prod(piece.shape)
    lacking = [n for n, shape in after.parameters.items() if after.same[n] == n and covered.get(n, 0) < prod(shape)]
    if lacking:
        raise PlanError(f"{lacking[0]} of the cut model would be in no file")


def cut_rows(piece: Piece, rows: Tensor, first: int) -> Tensor:
    """Return what is kept of the rows of a tensor from row `first` on, contiguous.

    Args:
        piece: what is kept of the tensor.
        rows: the rows; the whole tensor if it has no dims.
        first: the index of the first of the rows.
    """
    value, start = rows, 0
    for dim, units in enumerate(piece.kept):
        if units is None:
            start = first if dim == 0 else start
            continue
        if dim == 0:
            low, high = np.searchsorted(units, (first, first + len(rows)))
            start, units = int(low), units[low:high] - first
            if len(units) == len(rows):
                continue
        value = taken(value, dim, units)
    for dim, places, factor in piece.scales:
        if dim < 0:
            value = (value.double() * factor).to(value.dtype)
            continue
        if dim == 0:
            places = places[(places >= start) & (places < start + len(value))] - start
        index = torch.from_numpy(places)
        part = value.index_select(dim, index)
        value = value.clone() if value is rows else value
        value.index_copy_(dim, index, (part.double() * factor).to(value.dtype))
    return value.contiguous()
