"""Slices of one tensor as a plan says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

from bough.planning.plan import Plan, Scale

_CHUNK = 1 << 18  # elements at a time where several dims are cut: what lies between stays in the processor's cache


class Slicer:
    """Makes the tensors a plan wants; where several dims are cut, it goes by parts, of which one reused buffer holds one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._scales: dict[str, list[Scale]] = {}
        for scale in plan.scales:
            self._scales.setdefault(scale.name, []).append(scale)
        self._indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, name: str, value: Tensor, *, fresh: bool, power: int = 1, only: Collection[int] | None = None) -> Tensor:
        """The tensor `name` of value `value` as the plan wants it; a copy where `fresh`.

        A value that is not the tensor itself but goes with a power of it (a gradient with the power -1) is scaled by that
        power of the plan's factors; one that has only some of the tensor's dims is changed along `only` these.
        """
        scales = [s for s in self._scales.get(name, ()) if power and (only is None or s.dim in only)]
        dims = {d: i for d, i in self.plan.kept.get(name, {}).items() if only is None or d in only}
        if dims:
            value = self._selected(value, {d: self._index(i, value.device) for d, i in sorted(dims.items())})
        elif fresh or scales:
            value = value.clone()
        for s in scales:
            stay = dims.get(s.dim)
            index = self._index(s.indices if stay is None else _places(s.indices, stay), value.device)
            _multiply(value, s.dim, index, s.factor**power)
        return value

    def scaled(self, name: str, value: Tensor) -> Tensor:
        """Return a copy of the uncut tensor `name` with the plan's factors folded in, rounded to its dtype."""
        value = value.clone()
        for s in self._scales.get(name, ()):
            _multiply(value, s.dim, self._index(s.indices, value.device), s.factor)
        return value

    def _selected(self, value: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
        """Return the elements of `value` whose index along each dim is among `indices[dim]`, in memory of their own."""
        (first, rows), *others = indices.items()
        if not others or value.device.type == "meta":
            for dim, index in indices.items():
                value = value.index_select(dim, index)
            return value
        result = value.new_empty([len(indices[d]) if d in indices else n for d, n in enumerate(value.shape)])
        step = max(1, _CHUNK * value.shape[first] // max(value.numel(), 1))
        for start, some in zip(range(0, len(rows), step), rows.split(step), strict=True):
            shape = [len(some) if d == first else n for d, n in enumerate(value.shape)]
            part = torch.index_select(value, first, some, out=self._buffer(value, shape))
            for dim, index in others[:-1]:
                part = part.index_select(dim, index)
            torch.index_select(part, *others[-1], out=result.narrow(first, start, len(some)))
        return result

    def _buffer(self, value: Tensor, shape: list[int]) -> Tensor:
        key, size = (value.dtype, value.device), prod(shape)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = value.new_empty(size)
        return self._buffers[key][:size].view(shape)

    def _index(self, indices: Sequence[int], device: torch.device) -> Tensor:
        key = tuple(indices), device
        if key not in self._indices:
            self._indices[key] = torch.from_numpy(np.array(indices, dtype=np.int64)).to(device)
        return self._indices[key]


def _multiply(value: Tensor, dim: int, index: Tensor, factor: float) -> None:
    """Multiply some indices of one dim in place: in double precision, rounded to the tensor's dtype."""
    part = value.index_select(dim, index)
    value.index_copy_(dim, index, (part.double() * factor).to(value.dtype))


def _places(units: Sequence[int], stay: Sequence[int]) -> list[int]:
    """Return where `units` stand among the indices that stay."""
    wanted = frozenset(units)
    return [place for place, unit in enumerate(stay) if unit in wanted]


@contextmanager
def plainly() -> Iterator[None]:
    """What is made inside is ordinary tensors without history, also where the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def formatted(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory format of `old`."""
    for dims, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.ndim == dims and old.is_contiguous(memory_format=form) and not old.is_contiguous():
            return new.contiguous(memory_format=form)
    return new


def plain(tensor: Tensor) -> Tensor:
    """The values of a tensor, without its class and history."""
    detached = tensor.detach()
    return detached if type(detached) is Tensor else detached.as_subclass(Tensor)


def like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as a leaf of the class of `old`."""
    if new.layout != torch.strided:  # of which torch makes no subclasses
        return new
    return Tensor._make_subclass(type(old), new, old.requires_grad and old.is_leaf)
