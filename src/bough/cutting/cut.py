"""`cut`, `cut_` and `mask`: slicing as a plan says, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bough.cutting.metadata import refresh
from bough.errors import PlanError
from bough.graph import held_tensor
from bough.planning.plan import Plan
from bough.tracing.execution import held_tensors
from bough.tracing.held import read, write
from bough.tracing.trace import fingerprint


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """A new, smaller model; `model` stays as it was.

    Keeps mode, `requires_grad`, dtype, device, ties, parametrizations and hooks.

    Raises:
        PlanError: the plan was made for another model; nothing is changed.
    """
    check(model, plan)
    memo: dict[int, Any] = {}
    slicer = _Slicer(plan)
    with torch.no_grad():
        for name, tensor, _, _ in held_tensors(model):
            memo[id(tensor)] = _like(tensor, slicer(name, tensor.detach(), fresh=True))
    small = copy.deepcopy(model, memo)
    _finish(small, plan)
    return small


def cut_(model: nn.Module, plan: Plan) -> nn.Module:
    """Cuts in place, keeping each parameter's identity, and returns the model. All or nothing; gradients are dropped.

    Raises:
        PlanError: the plan was made for another model; nothing is changed.
    """
    check(model, plan)
    slicer = _Slicer(plan)
    with torch.no_grad():
        slices = {n: slicer(n, t.detach(), fresh=False) for n, t, _, _ in held_tensors(model) if _touched(n, plan)}
    for name, value in slices.items():
        tensor = held_tensor(model, name)
        tensor.grad = None
        tensor.data = value
    _finish(model, plan)
    return model


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of full size in which everything that the plan removes is zero."""
    check(model, plan)
    memo: dict[int, Any] = {}
    for name, tensor, parameter, _ in held_tensors(model):
        value = tensor.detach().clone()
        if parameter:
            for dim, indices in plan.kept.get(name, {}).items():
                gone = torch.ones(value.shape[dim], dtype=torch.bool)
                gone[torch.tensor(indices, dtype=torch.long)] = False
                value.index_fill_(dim, gone.nonzero().flatten().to(value.device), 0)
        memo[id(tensor)] = _like(tensor, value)
    return copy.deepcopy(model, memo)


def check(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError where the plan was not made for a model like this one."""
    found = fingerprint(model)
    held = {n: list(t.shape) for n, t, _, _ in held_tensors(model)}
    for name, shape in plan.original_shapes.items():
        if held.get(name) != shape:
            has = f"has shape {held[name]} here" if name in held else "does not exist here"
            raise PlanError(
                f"this plan was made for another model: {name} {has}, and had shape {shape} where the plan was made"
            )
    if found != plan.fingerprint:
        raise PlanError(
            f"this plan was made for another model: {type(model).__name__} has fingerprint {found}, "
            f"the plan's is {plan.fingerprint}"
        )
    for key in plan.attributes:
        try:
            read(model, tuple(key.split(":")))
        except (AttributeError, KeyError, IndexError, ValueError):
            raise PlanError(f"this plan was made for another model: it sets {key}, which does not exist here") from None


def _touched(name: str, plan: Plan) -> bool:
    return name in plan.kept or any(s.name == name for s in plan.scales)


class _Slicer:
    """Makes the tensors a plan wants; where several dims are cut, what lies between is kept in one reused buffer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._indices: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, name: str, value: Tensor, *, fresh: bool) -> Tensor:
        """The tensor `name` of value `value` as the plan wants it; a copy where `fresh`."""
        scales = [s for s in self.plan.scales if s.name == name]
        dims = self.plan.kept.get(name, {})
        if scales:
            value = value.clone()
            for s in scales:
                index = torch.tensor(s.indices, device=value.device)
                part = value.index_select(s.dim, index)
                value.index_copy_(s.dim, index, (part.double() * s.factor).to(value.dtype))
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


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        made = nn.Parameter(new, requires_grad=old.requires_grad)
        made.__dict__.update({k: v for k, v in old.__dict__.items() if k != "_bough"})
        return made
    return new.requires_grad_(old.requires_grad) if old.is_leaf else new


def _finish(model: nn.Module, plan: Plan) -> None:
    for key, value in plan.attributes.items():
        write(model, tuple(key.split(":")), value)
    owners = {name.rpartition(".")[0] for name in plan.kept}
    for module in {*owners, *(o.rpartition(".")[0] for o in owners)}:
        refresh(model.get_submodule(module))
