"""Lottery tickets: train, mask what is small, rewind, and train again (Frankle and Carbin, 2019; Frankle et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.errors import BudgetError, PlanError, names_in
from bough.graph import Graph
from bough.importance import Criterion, GroupNorm, Random, score
from bough.planning import Plan
from bough.planning import plan as make_plan
from bough.recovery.masks import Masks, Sparse, apply_masks_, kept_share, masks_of
from bough.recovery.modes import modes_kept, modes_of
from bough.recovery.regularize.units import can_be_zero
from bough.recovery.schedule import Schedule, geometric

State = dict[str, Any]


def magnitude_masks(
    model: nn.Module, keep: float, *, scope: str = "global", names: Iterable[str] | None = None, within: Masks | None = None
) -> Masks:  # fmt: skip
    """Unstructured masks: the share `keep` of weights that are largest in magnitude stays.

    Args:
        keep: above 0, at most 1.
        scope: "global" ranks all weights together, "layer" each parameter's own.
        names: parameters to mask; all with two dims or more unless given.
        within: earlier masks; what these take away stays away, and `keep` is still a share of all weights.

    Raises:
        PlanError: a share, scope or name that makes no sense, or more to keep than `within` leaves.

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
    weights = _weights(model, names)
    scores = {}
    for name, weight in weights.items():
        size = weight.detach().abs().double()
        scores[name] = size if within is None else size.masked_fill(~within[name].to(size.device), -1.0)
    if scope == "layer":
        return {name: _largest(score, keep, name) for name, score in scores.items()}
    together = _largest(torch.cat([s.flatten().cpu() for s in scores.values()]), keep, "all weights")
    parts = together.split([s.numel() for s in scores.values()])
    return {n: part.view(s.shape).to(s.device) for (n, s), part in zip(scores.items(), parts, strict=True)}


def random_masks(masks: Mapping[str, Tensor], seed: int = 0) -> Masks:
    """The random ticket: as many elements of each parameter stay as in `masks`, but random ones; the control.

    For structured masks take `random_plan`, whose units stay whole.
    """
    check_arguments(random_masks, locals())
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        found[name] = mask.flatten()[order].view(mask.shape)
    return found


def random_plan(graph: Graph, plan: Plan, seed: int = 0) -> Plan:
    """The structured random ticket: a plan that keeps as many units of each group as `plan`, but random ones.

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


def snapshot(model: nn.Module) -> State:
    """A copy of a model's state, to rewind to: take it at the start, or after epoch k."""
    check_arguments(snapshot, locals())
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()}


def rewind_(model: nn.Module, state: State, masks: Mapping[str, Tensor]) -> nn.Module:
    """Puts a model back to `state`, with what the masks take away at zero; returns it."""
    check_arguments(rewind_, locals())
    model.load_state_dict(state)
    return apply_masks_(model, masks)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One round: the share kept of the masked weights, the masks, the plan of a structured ticket, and what `train` gave for
    the ticket and for the random control."""

    kept: float
    masks: Masks
    plan: Plan | None
    result: Any
    control: Any

    def to_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "result": self.result, "control": self.control}


def find_tickets(
    model: nn.Module,
    train: Callable[[nn.Module, Sparse], Any],
    *,
    keep: float,
    rounds: int = 5,
    schedule: Schedule = geometric,
    rewind_to: State | None = None,
    graph: Graph | None = None,
    importance: str | Criterion | None = None,
    control: bool = True,
    seed: int = 0,
) -> list[Ticket]:
    """Iterative pruning with rewinding: `model` is trained whole, then once a round; it ends as the last ticket, trained.

    The first entry of what is returned is the whole model.

    Args:
        train: (model, sparse) -> a metric or anything to keep. It trains the model in place; `sparse` keeps the masks: attach
            it to the optimizer, or give it to `finetune(regularizers=(sparse,))`.
        keep: the share kept in the last round, of all weights or of each group's units; `schedule` gives the rounds before.
        rewind_to: the `snapshot` that each round starts from: of epoch k; of the model as it is unless given.
        graph: of the model, for structured tickets: whole units of its exact groups, which `cut(model, ticket.plan)` takes out;
            groups whose units can not be zero (weight norm) stay whole. Unstructured ones, by the magnitude of all weights,
            unless given.
        importance: of the units of structured tickets; `GroupNorm(p=2)` unless given.
        control: in each round train a random ticket too, from the same start and with as much kept in each place.

    Raises:
        BudgetError: `keep` or `rounds` out of range. PlanError: as for `magnitude_masks` or `plan`.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(6, 2)
        >>> found = find_tickets(net, lambda model, sparse: None, keep=0.25, rounds=2)
        >>> [round(t.kept, 2) for t in found], int(net.weight.count_nonzero())
        ([1.0, 0.5, 0.25], 3)
    """
    check_arguments(find_tickets, locals())
    if not 0 < keep <= 1 or rounds < 1:
        raise BudgetError(f"keep={keep}, rounds={rounds}: keep must be above 0 and at most 1, and rounds at least 1")
    shares = schedule(keep, rounds)  # told before anything is trained, if they can not be
    start = snapshot(model) if rewind_to is None else rewind_to
    modes = modes_of(model)  # the graph's, in which its plans are checked
    whole = {g.name: g.size for g in graph.groups if not can_be_zero(graph, g)} if graph is not None else {}
    if graph is not None and not any(g.exact and g.name not in whole for g in graph.groups):
        raise PlanError(
            f"no group of {type(model).__name__} has units that can be zero: leave out graph= for unstructured tickets"
        )
    found = [Ticket(1.0, {}, None, train(model, Sparse(model, {})), None)]
    for number, share in enumerate(shares):
        plan = None
        if graph is None:
            masks = magnitude_masks(model, share, within=found[-1].masks or None)
            chance = random_masks(masks, seed + number)
        else:
            with modes_kept(model, modes):
                plan = make_plan(graph, score(graph, importance or GroupNorm(p=2)), keep=share, exact_only=True, minimum=whole)
                masks, chance = masks_of(model, plan), masks_of(model, random_plan(graph, plan, seed + number))
        other = train(rewind_(model, start, chance), Sparse(model, chance)) if control else None
        result = train(rewind_(model, start, masks), Sparse(model, masks))
        found.append(Ticket(kept_share(masks), masks, plan, result, other))
    return found


def _weights(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    chosen = [n for n, p in parameters.items() if p.dim() > 1] if names is None else names_in(names, "names")
    unknown = [n for n in chosen if n not in parameters]
    if unknown or not chosen:
        what = f"{unknown[0]!r} is no parameter" if unknown else "they are of no parameter"
        raise PlanError(f"names: {what}; there are {', '.join(parameters)}")
    return {n: parameters[n] for n in chosen}


def _largest(scores: Tensor, keep: float, what: str) -> Tensor:
    """True for the share `keep` of the elements with the largest scores; negative ones are out of the question."""
    number = max(1, math.floor(keep * scores.numel() + 0.5))
    if number > int((scores >= 0).sum()):
        raise PlanError(f"keep={keep} of {what} is more than the earlier masks leave")
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().argsort(descending=True, stable=True)[:number]] = True
    return mask.view(scores.shape)
