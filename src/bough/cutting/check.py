"""Is this the model that the plan was made for?"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from torch import nn

from bough.errors import PlanError
from bough.planning.plan import Plan
from bough.tracing.execution import held_tensors, memory
from bough.tracing.held import read
from bough.tracing.trace import fingerprint


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
    _indices(held, plan)
    _ties(model, plan)
    modules = {n for n, _ in model.named_modules()}
    for name in plan.left_out.keys() - modules:
        raise PlanError(f"this plan was made for another model: it leaves out {name}, which does not exist here")
    for key in (*plan.attributes, *plan.sequences):
        try:
            read(model, tuple(key.split(":")))
        except (AttributeError, KeyError, IndexError, ValueError):
            raise PlanError(f"this plan was made for another model: it sets {key}, which does not exist here") from None


def _indices(held: dict[str, list[int]], plan: Plan) -> None:
    for name, dims in plan.kept.items():
        shape = held.get(name, [])
        for dim, kept in dims.items():
            if not (kept and 0 <= dim < len(shape) and min(kept) >= 0 and max(kept) < shape[dim]):
                raise PlanError(f"this plan is damaged: of dim {dim} of {name}, of shape {shape}, it keeps {kept}")


def _ties(model: nn.Module, plan: Plan) -> None:
    """What shares memory must be cut in the same way."""
    owners: dict[tuple[Hashable, ...], str] = {}
    for name, tensor, _, _ in held_tensors(model):
        owner = owners.setdefault(memory(tensor), name)
        if owner != name and _way(owner, plan) != _way(name, plan):
            raise PlanError(
                f"{owner} and {name} share their memory here, and the plan, made where they did not, cuts them in different "
                "ways: make a plan for this model, or give each its own memory"
            )


def _way(name: str, plan: Plan) -> tuple[Any, ...]:
    return plan.kept.get(name, {}), [replace(s, name="") for s in plan.scales if s.name == name]
