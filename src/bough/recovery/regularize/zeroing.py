"""Ways that end in exact zeros: units chosen and faded out, and the plan that cuts what is zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance import Criterion, GroupNorm, score
from bough.planning import Budget, Plan, plan
from bough.planning.budget import LeastOfTied, priced
from bough.planning.equations import ties
from bough.recovery.attach import Attachment, after_each_step, check_holds
from bough.recovery.masks import Masks, masks_of
from bough.recovery.modes import modes_kept, modes_of
from bough.recovery.regularize.units import all_units
from bough.recovery.schedule import Schedule, budgets, linear
from bough.spaces import coordinates


class ProgressiveZeroing:
    """Chooses units to a budget and fades them out while training goes on (HESSO, Chen et al., 2024).

    In each of `periods`, the units with the lowest scores are chosen until what remains meets that period's budget; over its
    `steps` steps of the optimizer all that is theirs, in all coupled members, is multiplied by (T - t - 1) / (T - t) after
    step t = 0 .. T - 1, and so falls in a straight line to exactly zero, and stays there. `plan` is then the plan whose cut
    equals the model. Nothing is to be tuned but when.

    Args:
        graph: of the model that is trained. budget: for the end.
        steps: steps of the optimizer in each period.
        periods: how many.
        importance: the criterion, `GroupNorm(p=2)` unless given; its scores must not be negative.
        schedule: shares kept after each period.

    Raises:
        BudgetError, PlanError: as for `bough.plan`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> fading = ProgressiveZeroing(graph, bough.Budget(params="50%"), steps=2, periods=2)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> attached = fading.attach(sgd)
        >>> for _ in range(4):
        ...     sgd.zero_grad()
        ...     net(torch.randn(3, 4)).square().sum().backward()
        ...     sgd.step()
        >>> fading.done, torch.allclose(net(torch.ones(1, 4)), bough.cut(net, fading.plan)(torch.ones(1, 4)))
        (True, True)
    """

    def __init__(
        self, graph: Graph, budget: Budget, *, steps: int, periods: int = 5, importance: Criterion | None = None,
        schedule: Schedule = linear,
    ) -> None:  # fmt: skip
        check_arguments(ProgressiveZeroing.__init__, locals())
        if steps < 1:
            raise PlanError(f"steps={steps}: a period has at least one step")
        self.graph, self.steps, self.criterion = graph, steps, importance or GroupNorm(p=2)
        self.budget = budget
        fit, self.left_out = all_units(graph)
        self._fit = {u.name for u in fit}
        self._modes = modes_of(graph.model)  # the graph's, in which its plans are checked
        self.step = 0
        self.plan: Plan | None = None
        self._masks: Masks = {}
        end = self._choose(budget)  # can it be reached at all? better told now than after training
        self.budgets = budgets(budget, end.original, periods, schedule)

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self.graph.model.parameters(), "the graph's model")
        return after_each_step(optimizer, self._fade)

    @property
    def done(self) -> bool:
        """Whether all that is to go is zero."""
        return self.step >= self.steps * len(self.budgets)

    settled = done

    @torch.no_grad()
    def _fade(self, optimizer: Optimizer) -> None:
        period, t = divmod(self.step, self.steps)
        if period < len(self.budgets) and t == 0:
            with modes_kept(self.graph.model, self._modes):
                self.plan = self._choose(self.budgets[period])
            self._masks = masks_of(self.graph.model, self.plan)
        factor = (self.steps - t - 1) / (self.steps - t) if period < len(self.budgets) else 0.0
        for name, mask in self._masks.items():
            tensor = self.graph.tensor(name)
            faded = tensor * factor if factor else torch.zeros_like(tensor)
            tensor.copy_(torch.where(mask.to(tensor.device), tensor, faded))
        self.step += 1

    def _choose(self, budget: Budget) -> Plan:
        scores = {n: np.array(s, dtype=np.float64) for n, s in score(self.graph, self.criterion).items()}
        negative = [n for n, s in scores.items() if (s < 0).any()]
        if negative:
            raise PlanError(f"ProgressiveZeroing needs scores that are not negative, and those of {negative[0]!r} are")
        for name, gone in self._gone(self.plan).items():
            scores[name] = scores[name] + (~gone) * (scores[name].mean() or 1.0) * 1e-9  # ties go to what is gone already
            scores[name][gone] = 0.0
        whole = {g.name: g.size for g in self.graph.groups if g.name not in self._fit}
        chosen = plan(self.graph, scores, budget, minimum=whole)
        if self.plan is None:
            return chosen
        keep = LeastOfTied(
            {n: min(k, self.plan.groups[n][0]) for n, (k, _) in chosen.groups.items()}
        )  # what is gone stays gone
        made, form = plan(self.graph, scores, keep=keep, minimum=whole), priced(budget, None, None).form(self.graph)
        cost = form.cost(form.vector({n: kept for n, (kept, _) in made.groups.items()}))
        return replace(made, cost=cost, original=chosen.original, notes=chosen.notes)

    def _gone(self, chosen: Plan | None) -> dict[str, Any]:
        """Which units of each group a plan removes."""
        found = {}
        for group in self.graph.groups:
            gone = np.zeros(group.size, dtype=bool)
            member = next((m for m in group.members if chosen and m.dim in chosen.kept.get(m.name, {})), None)
            if chosen is not None and member is not None and chosen.groups[group.name][0] < group.size:
                units = coordinates(self.graph.states[member.name].axes[member.dim], group.atom)[0]
                gone[:] = True
                kept = units[chosen.kept[member.name][member.dim]]
                gone[kept[kept >= 0]] = False
            found[group.name] = gone
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "plan": None if self.plan is None else self.plan.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.plan = None if state["plan"] is None else Plan.from_json(state["plan"])
        self._masks = {} if self.plan is None else masks_of(self.graph.model, self.plan)


def zeros(graph: Graph) -> Plan:
    """The plan that cuts the units which are exactly zero in every parameter that has them: the cut equals the model.

    Where the model's Python ties groups together, only as many units go as all of them can spare.

    Raises:
        PlanError: no unit is zero.
    """
    check_arguments(zeros, locals())
    units, _ = all_units(graph)
    alive = {u.name: (u.squares() > 0).cpu() for u in units}
    if all(bool(a.all()) for a in alive.values()):
        raise PlanError("no unit is zero in all its members: train longer or stronger, or plan to a budget by scores()")
    sizes = {g.name: g.size for g in graph.groups}
    keep = {n: max(1, int(alive[n].sum())) if n in alive else size for n, size in sizes.items()}
    held = {n: "its units are not trained to zero" for n in sizes if n not in alive}
    for names in ties(graph, held).classes:
        share = max(keep[n] / sizes[n] for n in names)
        keep.update({n: min(sizes[n], int(np.ceil(share * sizes[n] - 1e-9))) for n in names})
    scores = {n: alive[n].double().numpy() if n in alive else np.ones(size) for n, size in sizes.items()}
    made = plan(graph, scores, keep=keep)
    short = [n for n, a in alive.items() if made.groups[n][0] < int(a.sum())]
    if short:
        raise PlanError(f"the zeros of {short[0]!r} can not be cut alone: other groups are tied to it")
    return made
