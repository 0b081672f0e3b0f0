"""Check that a plan and a model belong together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bough.cutting.parameter_history import histories
from bough.errors import PlanError
from bough.planning.plan import Plan
from bough.storage.schema import index_problem
from bough.storage.tensors import memory
from bough.tracing.capture.attribute_numbers import read
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.provenance import path_of
from bough.tracing.fingerprint import fingerprint, weights_digest

_SHOWN = 8


def check(model: nn.Module, plan: Plan) -> None:
    """Check that a plan fits a model: its architecture, the names and shapes of its tensors, its indices, its attributes.

    Other weights than those the plan was made from are no error: see `check_weights`.

    Raises:
        PlanError: the plan was made for another architecture, or is damaged.
    """
    found = fingerprint(model)
    tensors = {n: t for n, t, _, _ in model_tensors(model)}
    shapes = {n: list(t.shape) for n, t in tensors.items()}
    known = model.state_dict().keys() if found == plan.fingerprint else shapes.keys()
    for name, shape in plan.original_shapes.items():
        if shapes.get(name) != shape and not (name not in known and _fits(name, shapes.get(name), plan)):
            has = f"has shape {shapes[name]} here" if name in shapes else "does not exist here"
            raise PlanError(
                f"this plan was made for another model: {name} {has}, and had shape {shape} where the plan was made"
            )
    if found != plan.fingerprint:
        raise PlanError(
            f"this plan was made for another model: {type(model).__name__} has fingerprint {found}, "
            f"the plan's is {plan.fingerprint}"
        )
    for name, dims in plan.kept.items():
        for dim, kept in dims.items():
            if name in shapes or name in known or name not in plan.original_shapes:
                _check_indices(name, dim, kept, shapes)
    for scale in plan.scales:
        _check_indices(scale.name, scale.dim, scale.indices, shapes)
    _ties(tensors, plan)
    modules = {n for n, _ in model.named_modules()}
    for name in plan.left_out.keys() - modules:
        raise PlanError(f"this plan was made for another model: it leaves out {name}, which does not exist here")
    for key in (*plan.attributes, *plan.sequences):
        try:
            read(model, path_of(key)[:-1])  # what holds it: a config need not have had the number itself
        except (AttributeError, KeyError, IndexError, ValueError):
            raise PlanError(f"this plan was made for another model: it sets {key}, which does not exist here") from None
    for key, items in plan.sequences.items():
        there = read(model, path_of(key))
        problem = index_problem(items, len(there)) if isinstance(there, (list, tuple)) else "is for a list"
        if items and problem is not None:
            raise PlanError(f"this plan is damaged: of the items of {key} it keeps {items}, which {problem}")


def _fits(name: str, shape: list[int] | None, plan: Plan) -> bool:
    """Whether a tensor outside the state dict, which calls may have made, lost or resized, can be cut: absent, or as wide."""
    whole = plan.original_shapes[name]
    dims = plan.kept.get(name, {})
    return shape is None or (len(shape) == len(whole) and all(shape[d] == whole[d] for d in dims))


def check_weights(model: nn.Module, plan: Plan) -> None:
    """Check that a model has the weights from which a plan was made, where both are known.

    A model that the plan has cut in this process passes, whatever it was made from: plans may be applied to other weights of
    the same architecture, and to a model that was trained since.

    Raises:
        PlanError: the model has other weights.
    """
    other = "" if _was_cut(model, plan) else other_weights(model, plan)
    if other:
        raise PlanError(other)


def other_weights(model: nn.Module, plan: Plan) -> str:
    """Return the sentence that a model has other weights than those from which a plan was made; "" where it may have them."""
    digest = None if plan.weights is None else weights_digest(model)
    if digest is None or digest == plan.weights:
        return ""
    return (
        f"{type(model).__name__} has other weights than the model that was pruned (digest {digest}, and {plan.weights} in the "
        "plan): give that model, with its weights loaded; where its weights are random, set the seed before it is built"
    )


def _was_cut(model: nn.Module, plan: Plan) -> bool:
    return any(p.plan is plan or p.plan == plan for parameter in model.parameters() for p in histories(parameter))


def _check_indices(name: str, dim: int, indices: Sequence[int], shapes: Mapping[str, list[int]]) -> None:
    shape = shapes.get(name)
    if shape is None:
        raise PlanError(f"this plan was made for another model: it cuts {name}, which does not exist here")
    if type(dim) is not int or not 0 <= dim < len(shape):
        raise PlanError(f"this plan is damaged: it cuts dim {dim} of {name}, which has shape {shape}")
    problem = index_problem(indices, shape[dim])
    if problem is not None:
        some = list(indices[:_SHOWN]) if isinstance(indices, (list, tuple)) else indices
        more = ", ..." if isinstance(some, list) and len(some) < len(indices) else ""
        raise PlanError(
            f"this plan is damaged: of dim {dim} of {name}, of shape {shape}, it keeps {some}{more}, which {problem}"
        )


def _ties(tensors: Mapping[str, Tensor], plan: Plan) -> None:
    """What shares memory must be cut in the same way."""
    owners: dict[tuple[Hashable, ...], str] = {}
    for name, tensor in tensors.items():
        owner = owners.setdefault(memory(tensor), name)
        if owner != name and _way(owner, plan) != _way(name, plan):
            raise PlanError(
                f"{owner} and {name} share their memory here, and the plan, made where they did not, cuts them in different "
                "ways: make a plan for this model, or give each its own memory"
            )


def _way(name: str, plan: Plan) -> tuple[Any, ...]:
    return plan.kept.get(name, {}), [replace(s, name="") for s in plan.scales if s.name == name]
