"""`find_tickets`: iterative pruning with rewinding (Frankle and Carbin, 2019; Frankle et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.errors import BudgetError, PlanError
from bough.graph import Graph
from bough.importance import Criterion, GroupNorm, score
from bough.planning import Plan
from bough.planning import plan as make_plan
from bough.recovery.regularize import Masks, Sparse, can_be_zero, kept_share, masks_of
from bough.recovery.schedule import Schedule, geometric
from bough.recovery.tickets.rewinding import State, rewind_, snapshot
from bough.recovery.tickets.ticket_masks import magnitude_masks, random_masks, random_plan
from bough.recovery.training import restore_modes, training_modes


@dataclass(frozen=True, slots=True)
class Ticket:
    """One round of `find_tickets`.

    Attributes:
        kept: the share of the masked weights that is kept.
        masks: of the ticket.
        plan: of a structured ticket; None for an unstructured one.
        result: what `train` returned for the ticket.
        control: what `train` returned for the random control; None without one.
    """

    kept: float
    masks: Masks
    plan: Plan | None
    result: Any
    control: Any

    def to_dict(self) -> dict[str, Any]:
        """Return share and results, for JSON."""
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
    """Train the whole model, then prune, rewind and train again in each round; return all rounds, the whole model first.

    The model ends as the last ticket, trained.

    Source: Frankle and Carbin, 2019; Frankle et al., 2020 (rewinding to epoch k).

    Args:
        model: is changed.
        train: (model, sparse) -> a metric, or any result. Trains the model in place; `sparse` keeps the masks: attach it to
            the optimizer, or pass it to `finetune(regularizers=(sparse,))`.
        keep: share kept in the last round, of all weights or of each group's units.
        rounds: number of rounds after the first training.
        schedule: gives the shares of the rounds.
        rewind_to: the `snapshot` from which each round starts, such as one of epoch k; the initial state unless given.
        graph: of the model, for structured tickets: whole units of its exact groups, which `cut(model, ticket.plan)` removes;
            groups whose units cannot be zero (weight norm) stay whole. Unless given, tickets are unstructured, by the
            magnitude of all weights.
        importance: of the units of structured tickets; `GroupNorm(p=2)` unless given.
        control: whether to also train a random ticket in each round, from the same state and with as many weights kept.
        seed: of the random tickets.

    Raises:
        ArgumentError: an argument of another type.
        BudgetError: `keep` or `rounds` is out of range.
        PlanError: as for `magnitude_masks` or `plan`.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(6, 2)
        >>> tickets = find_tickets(net, lambda model, sparse: None, keep=0.25, rounds=2)
        >>> [round(t.kept, 2) for t in tickets], int(net.weight.count_nonzero())
        ([1.0, 0.5, 0.25], 3)
    """
    check_arguments(find_tickets, locals())
    if not 0 < keep <= 1 or rounds < 1:
        raise BudgetError(f"keep={keep}, rounds={rounds}: keep must be above 0 and at most 1, and rounds at least 1")
    shares = schedule(keep, rounds)  # fails now, and not after training, if the shares are invalid
    start = snapshot(model) if rewind_to is None else rewind_to
    modes = training_modes(model)  # plans are checked in the modes of the trace
    whole = {g.name: g.size for g in graph.groups if not can_be_zero(graph, g)} if graph is not None else {}
    if graph is not None and not any(g.exact and g.name not in whole for g in graph.groups):
        raise PlanError(
            f"no group of {type(model).__name__} has units that can be zero: leave out graph= for unstructured tickets"
        )
    tickets = [Ticket(1.0, {}, None, train(model, Sparse(model, {})), None)]
    for number, share in enumerate(shares):
        plan = None
        if graph is None:
            masks = magnitude_masks(model, share, within=tickets[-1].masks or None)
            control_masks = random_masks(masks, seed + number)
        else:
            with restore_modes(model, modes):
                plan = make_plan(graph, score(graph, importance or GroupNorm(p=2)), keep=share, exact_only=True, minimum=whole)
                masks, control_masks = (masks_of(model, p) for p in (plan, random_plan(graph, plan, seed + number)))
        control_result = train(rewind_(model, start, control_masks), Sparse(model, control_masks)) if control else None
        result = train(rewind_(model, start, masks), Sparse(model, masks))
        tickets.append(Ticket(kept_share(masks), masks, plan, result, control_result))
    return tickets
