"""Slices of one tensor as a plan says."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bough.planning.plan import Plan


class Slicer:
    """Makes the tensors a plan wants; where several dims are cut, what lies between is kept in one reused buffer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._indices: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, name: str, value: Tensor, *, fresh: bool, power: int = 1, only: Collection[int] | None = None) -> Tensor:
        """The tensor `name` of value `value` as the plan wants it; a copy where `fresh`.

        A value that is not the tensor itself but goes with a power of it (a gradient with the power -1) is scaled by that
        power of the plan's factors; one that has only some of the tensor's dims is changed along `only` these.
        """
        scales = [s for s in self.plan.scales if s.name == name and power and (only is None or s.dim in only)]
        dims = {d: i for d, i in self.plan.kept.get(name, {}).items() if only is None or d in only}
        if scales:
            value = value.clone()
            for s in scales:
                index = torch.tensor(s.indices, device=value.device)
                part = value.index_select(s.dim, index)
                value.index_copy_(s.dim, index, (part.double() * s.factor**power).to(value.dtype))
        elif not dims:
            return value.clone() if fresh else value
        order = sorted(dims, key=lambda d: len(dims[d]) / value.shape[d])
        for place, dim in enumerate(order):
            index = self._index(dims[dim], value.device)
            out = None if place == len(order) - 1 else self._buffer(value, dim, len(index), place)
            value = torch.index_select(value, dim, index, out=out)
        return value

    def _index(self, indices: list[int], device: torch.device) -> Tensor:
        key = (id(indices), device)  # the plan's lists live as long as this
        if key not in self._indices:
            self._indices[key] = torch.tensor(indices, device=device)
        return self._indices[key]

    def _buffer(self, value: Tensor, dim: int, kept: int, place: int) -> Tensor | None:
        if place or value.device.type == "meta":
            return None
        shape = [kept if d == dim else n for d, n in enumerate(value.shape)]
        size = torch.Size(shape).numel()
        key = (value.dtype, value.device)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=value.dtype, device=value.device)
        return self._buffers[key][:size].view(shape)


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
