"""Progressive zeroing of units to a budget during training, and the plan that cuts units that are zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance import Criterion, GroupNorm, score
from bough.planning import Budget, Plan, plan
from bough.planning.budget import LeastOfTied, priced
from bough.planning.constraints.equations import ties
from bough.recovery.regularize.group_units import regularizable_units
from bough.recovery.regularize.masks import Masks, masks_of
from bough.recovery.schedule import Schedule, budgets, linear
from bough.recovery.training import Attachment, check_optimizer, hook_after_step, restore_modes, training_modes
from bough.spaces import coordinates


class ProgressiveZeroing:
    """Select units to a budget and scale them to zero while training continues.

    In each of `periods`, the units with the lowest scores are selected until the rest meets the budget of that period. Over
    its `steps` optimizer steps, all elements of these units, in all coupled members, are multiplied by (T - t - 1) / (T - t)
    after step t = 0 .. T - 1, so that they fall linearly to exactly zero, and then stay there. The attribute `plan` is then
    the plan whose cut equals the model.

    Source: Chen et al., 2024 (HESSO).

    Args:
        graph: of the model that is trained.
        budget: for the end.
        steps: optimizer steps in each period.
        periods: number of periods.
        importance: the criterion, `GroupNorm(p=2)` unless given; its scores must not be negative.
        schedule: shares kept after each period.

    Raises:
        ArgumentError: an argument of another type.
        BudgetError, PlanError: as for `bough.plan`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> zeroing = ProgressiveZeroing(graph, bough.Budget(params="50%"), steps=2, periods=2)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> attached = zeroing.attach(sgd)
        >>> for _ in range(4):
        ...     sgd.zero_grad()
        ...     net(torch.randn(3, 4)).square().sum().backward()
        ...     sgd.step()
        >>> zeroing.done, torch.allclose(net(torch.ones(1, 4)), bough.cut(net, zeroing.plan)(torch.ones(1, 4)))
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
        suitable, self.left_out = regularizable_units(graph)
        self._suitable = {u.name for u in suitable}
        self._modes = training_modes(graph.model)  # plans are checked in the modes of the trace
        self.step = 0
        self.plan: Plan | None = None
        self._masks: Masks = {}
        final = self._select(budget)  # fails now, and not after training, if the budget is out of reach
        self.budgets = budgets(budget, final.original, periods, schedule)

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Register the hooks on an optimizer.

        Raises:
            TrainingError: the optimizer has no parameter of the graph's model.
        """
        check_optimizer(optimizer, self.graph.model.parameters(), "the graph's model")
        return hook_after_step(optimizer, self._scale_down)

    @property
    def done(self) -> bool:
        """True if all units selected for the last period are zero."""
        return self.step >= self.steps * len(self.budgets)

    settled = done

    @torch.no_grad()
    def _scale_down(self, optimizer: Optimizer) -> None:
        """Scale the selected units down by one step; select new ones at the start of a period."""
        period, t = divmod(self.step, self.steps)
        if period < len(self.budgets) and t == 0:
            with restore_modes(self.graph.model, self._modes):
                self.plan = self._select(self.budgets[period])
            self._masks = masks_of(self.graph.model, self.plan)
        factor = (self.steps - t - 1) / (self.steps - t) if period < len(self.budgets) else 0.0
        for name, mask in self._masks.items():
            tensor = self.graph.tensor(name)
            scaled = tensor * factor if factor else torch.zeros_like(tensor)
            tensor.copy_(torch.where(mask.to(tensor.device), tensor, scaled))
        self.step += 1

    def _select(self, budget: Budget) -> Plan:
        """Return a plan to a budget that removes at least what the current plan removes."""
        scores = {n: np.array(s, dtype=np.float64) for n, s in score(self.graph, self.criterion).items()}
        negative = [n for n, s in scores.items() if (s < 0).any()]
        if negative:
            raise PlanError(f"ProgressiveZeroing needs scores that are not negative, and those of {negative[0]!r} are")
        for name, removed in self._removed_units(self.plan).items():
            scores[name] = scores[name] + (~removed) * (scores[name].mean() or 1.0) * 1e-9  # so removed units lose ties
            scores[name][removed] = 0.0
        whole = {g.name: g.size for g in self.graph.groups if g.name not in self._suitable}
        selected = plan(self.graph, scores, budget, minimum=whole)
        if self.plan is None:
            return selected
        counts = {n: min(kept, self.plan.groups[n][0]) for n, (kept, _) in selected.groups.items()}
        made = plan(self.graph, scores, keep=LeastOfTied(counts), minimum=whole)
        form = priced(budget, None, None).form(self.graph)
        cost = form.cost(form.vector({n: kept for n, (kept, _) in made.groups.items()}))
        return replace(made, cost=cost, original=selected.original, notes=selected.notes)

    def _removed_units(self, current: Plan | None) -> Mapping[str, NDArray[np.bool_]]:
        """Return, for each group, which units a plan removes: bool [units]."""
        removed_units = {}
        for group in self.graph.groups:
            removed = np.zeros(group.size, dtype=bool)
            member = next((m for m in group.members if current and m.dim in current.kept.get(m.name, {})), None)
            if current is not None and member is not None and current.groups[group.name][0] < group.size:
                units = coordinates(self.graph.states[member.name].axes[member.dim], group.atom)[0]
                removed[:] = True
                kept = units[current.kept[member.name][member.dim]]
                removed[kept[kept >= 0]] = False
            removed_units[group.name] = removed
        return removed_units

    def state_dict(self) -> dict[str, Any]:
        """Return step and plan."""
        return {"step": self.step, "plan": None if self.plan is None else self.plan.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.step = int(state["step"])
        self.plan = None if state["plan"] is None else Plan.from_json(state["plan"])
        self._masks = {} if self.plan is None else masks_of(self.graph.model, self.plan)


def zeros(graph: Graph) -> Plan:
    """Return the plan that cuts the units which are exactly zero in all their parameters; the cut equals the model.

    If the model's Python ties the widths of groups together, as many units are cut as all tied groups can spare.

    Args:
        graph: of the trained model.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: no unit is zero.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     for zero in (net[0].weight[:3], net[0].bias[:3], net[2].weight[:, :3]):
        ...         _ = zero.zero_()
        >>> zeros(bough.trace(net, torch.randn(1, 4))).groups["0"]
        (5, 8)
    """
    check_arguments(zeros, locals())
    units, _ = regularizable_units(graph)
    is_nonzero = {u.name: (u.squares() > 0).cpu() for u in units}
    if all(bool(mask.all()) for mask in is_nonzero.values()):
        raise PlanError("no unit is zero in all its members: train longer or stronger, or plan to a budget by scores()")
    sizes = {g.name: g.size for g in graph.groups}
    keep = {n: max(1, int(is_nonzero[n].sum())) if n in is_nonzero else size for n, size in sizes.items()}
    whole = {n: "its units are not trained to zero" for n in sizes if n not in is_nonzero}
    for names in ties(graph, whole).classes:
        share = max(keep[n] / sizes[n] for n in names)
        keep.update({n: min(sizes[n], int(np.ceil(share * sizes[n] - 1e-9))) for n in names})
    scores = {n: is_nonzero[n].double().numpy() if n in is_nonzero else np.ones(size) for n, size in sizes.items()}
    made = plan(graph, scores, keep=keep)
    short = [n for n, mask in is_nonzero.items() if made.groups[n][0] < int(mask.sum())]
    if short:
        raise PlanError(f"the zeros of {short[0]!r} can not be cut alone: other groups are tied to it")
    return made
