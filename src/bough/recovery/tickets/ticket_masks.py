"""Masks of lottery tickets: by magnitude, and random ones as a control."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.errors import PlanError, names_in
from bough.graph import Graph
from bough.importance import Random, score
from bough.planning import Plan
from bough.planning import plan as make_plan
from bough.recovery.regularize import Masks


def magnitude_masks(
    model: nn.Module, keep: float, *, scope: str = "global", names: Iterable[str] | None = None, within: Masks | None = None
) -> Masks:  # fmt: skip
    """Return unstructured masks that keep the share `keep` of weights with the largest magnitude.

    Args:
        model: stays as it is.
        keep: above 0, at most 1.
        scope: "global" ranks all weights together, "layer" ranks each parameter's own.
        names: parameters to mask; all with two or more dims unless given.
        within: earlier masks; elements that these remove stay removed, and `keep` is still a share of all weights.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: `keep`, `scope` or a name is invalid, or `within` leaves fewer elements than `keep`.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(4, 1)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -4.0, 3.0, 2.0]]))
        >>> magnitude_masks(net, 0.5)["weight"]
        tensor([[False,  True,  True, False]])
    """
    check_arguments(magnitude_masks, locals())
    if not 0 < keep <= 1 or scope not in ("global", "layer"):
        raise PlanError(f"keep={keep}, scope={scope!r}: keep above 0 and at most 1, scope 'global' or 'layer'")
    magnitudes = {}
    for name, weight in _weights(model, names).items():
        size = weight.detach().abs().double()
        magnitudes[name] = size if within is None else size.masked_fill(~within[name].to(size.device), -1.0)
    if scope == "layer":
        return {name: _largest(size, keep, name) for name, size in magnitudes.items()}
    mask = _largest(torch.cat([s.flatten().cpu() for s in magnitudes.values()]), keep, "all weights")
    parts = mask.split([s.numel() for s in magnitudes.values()])
    return {n: part.view(s.shape).to(s.device) for (n, s), part in zip(magnitudes.items(), parts, strict=True)}


def random_masks(masks: Mapping[str, Tensor], seed: int = 0) -> Masks:
    """Return masks that keep as many elements of each parameter as `masks`, but random ones: the control of a ticket.

    For structured masks use `random_plan`, which keeps whole units.

    Args:
        masks: {parameter: bool tensor}.
        seed: of the permutation.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> int(random_masks({"weight": torch.tensor([True, True, False, False])})["weight"].sum())
        2
    """
    check_arguments(random_masks, locals())
    generator = torch.Generator().manual_seed(seed)
    permuted = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        permuted[name] = mask.flatten()[order].view(mask.shape)
    return permuted


def random_plan(graph: Graph, plan: Plan, seed: int = 0) -> Plan:
    """Return a plan that keeps as many units of each group as `plan`, but random ones: the control of a structured ticket.

    Args:
        graph: of the model.
        plan: made for this model.
        seed: of the random scores.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: as for `bough.plan`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> random_plan(graph, plan).groups == plan.groups
        True
    """
    check_arguments(random_plan, locals())
    counts = {name: kept for name, (kept, _) in plan.groups.items()}
    return make_plan(graph, score(graph, Random(seed)), keep=counts)


def _weights(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Return the parameters to mask by name."""
    parameters = dict(model.named_parameters())
    chosen = [n for n, p in parameters.items() if p.dim() > 1] if names is None else names_in(names, "names")
    unknown = [n for n in chosen if n not in parameters]
    if unknown or not chosen:
        what = f"{unknown[0]!r} is no parameter" if unknown else "they are of no parameter"
        raise PlanError(f"names: {what}; there are {', '.join(parameters)}")
    return {n: parameters[n] for n in chosen}


def _largest(magnitudes: Tensor, keep: float, what: str) -> Tensor:
    """Return a mask of the share `keep` of elements with the largest magnitudes; negative ones are never kept."""
    count = max(1, math.floor(keep * magnitudes.numel() + 0.5))
    if count > int((magnitudes >= 0).sum()):
        raise PlanError(f"keep={keep} of {what} is more than the earlier masks leave")
    mask = torch.zeros(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    mask[magnitudes.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(magnitudes.shape)
