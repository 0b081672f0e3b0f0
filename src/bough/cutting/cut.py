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
    for name, tensor, _, _ in held_tensors(model):
        memo[id(tensor)] = _like(tensor, _sliced(name, tensor.detach(), plan, fresh=True))
    small = copy.deepcopy(model, memo)
    _finish(small, plan)
    return small


def cut_(model: nn.Module, plan: Plan) -> nn.Module:
    """Cuts in place, keeping each parameter's identity, and returns the model. All or nothing; gradients are dropped.

    Raises:
        PlanError: the plan was made for another model; nothing is changed.
    """
    check(model, plan)
    slices = {n: _sliced(n, t.detach(), plan, fresh=False) for n, t, _, _ in held_tensors(model) if _touched(n, plan)}
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


def _sliced(name: str, value: Tensor, plan: Plan, *, fresh: bool) -> Tensor:
    """The tensor as the plan wants it; a copy where `fresh`."""
    scales = [s for s in plan.scales if s.name == name]
    if scales:
        value = value.clone()
        for s in scales:
            index = torch.tensor(s.indices, device=value.device)
            shape = [-1 if d == s.dim else 1 for d in range(value.dim())]
            value.index_copy_(
                s.dim,
                index,
                value.index_select(s.dim, index)
                * torch.full((len(index),), s.factor, dtype=torch.float64).view(shape).to(value),
            )
    dims = plan.kept.get(name, {})
    for dim, indices in sorted(dims.items(), key=lambda item: len(item[1]) / value.shape[item[0]]):
        value = value.index_select(dim, torch.tensor(indices, device=value.device))
    return value.clone() if fresh and not scales and not dims else value


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
