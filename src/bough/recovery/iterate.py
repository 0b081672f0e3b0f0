"""`iterate`: cut a little, recover, and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.calibration import Data
from bough.cutting import Verification, cut, transfer_optimizer, verify
from bough.cutting.verification import check_on_mismatch, require_equal
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance import Criterion, DataCriterion, Magnitude, score
from bough.planning import Budget, Plan, plan
from bough.planning.compose import compose
from bough.recovery.attach import check_holds
from bough.recovery.schedule import Schedule, budgets, geometric
from bough.tracing import trace
from bough.tracing.selection import Selection, as_names, selectors

Planner = Callable[[Graph, Any, Budget], Plan]


@dataclass(frozen=True, slots=True)
class Step:
    """One cut of several: its number from 0, what might remain after it, its plan for the model as it then was, the proof."""

    number: int
    budget: Budget
    plan: Plan
    report: Verification


@dataclass(frozen=True, slots=True)
class Iterated:
    """What `iterate` gives: the model, the plan from the original model to it (all steps composed), and each step."""

    model: nn.Module
    plan: Plan
    steps: tuple[Step, ...]

    @property
    def report(self) -> Verification:
        """The verification of the first step that is not equal, or of the step with the largest error."""
        return max((s.report for s in self.steps), key=lambda report: (not report.equal, report.max_error))

    def to_dict(self) -> dict[str, Any]:
        steps = [{"cost": s.plan.cost.to_dict(), "verification": s.report.to_dict()} for s in self.steps]
        return {"plan": self.plan.to_dict(), "steps": steps}

    def __str__(self) -> str:
        lines = [f"step {s.number}: {s.plan.cost.params:,} params, {s.plan.cost.macs:,} MACs; {s.report}" for s in self.steps]
        return "\n".join([str(self.plan), *lines])


def iterate(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    recover: Callable[[nn.Module, int], object],
    *,
    steps: int = 5,
    schedule: Schedule = geometric,
    importance: str | Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    planning: Planner = plan,
    ignore: Selection = (),
    only: Selection | None = None,
    optimizer: Optimizer | None = None,
    on_mismatch: str = "raise",
) -> Iterated:
    """Cuts to `budget` in several steps, each of them scored and planned anew, with recovery after each; `model` stays.

    Args:
        model, example_inputs, ignore, only: as for `trace`.
        budget: for the last step; its percentages are of the original model, in every step.
        recover: called with the cut model and the step's number after each cut; trains the model in place.
        steps: number of cuts.
        schedule: shares kept after each step: `geometric`, `linear`, `cubic` or a function of your own.
        importance: the criterion, `Magnitude(p=2)` unless given. data: batches for one that needs them, as for `score`.
        planning: `plan`, or with options: `functools.partial(bough.plan, round_to=8)`.
        optimizer: of `model`; it is carried through each cut with its state, so `recover` can go on with it.
        on_mismatch: "raise" where a step's cut model is not the masked model before it (see `verify`), or "return" to go on.

    Raises:
        BudgetError: the last step's budget can not be reached; told before anything is cut.
        PlanError, ConflictError: as for `plan`.
        VerificationError: a step's cut does not verify; the steps up to it are attached as `result`. Nothing of it is trained.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> done = iterate(net, torch.randn(1, 4), bough.Budget(params="40%"), lambda model, step: None, steps=3)
        >>> [s.plan.cost.params for s in done.steps], done.model[0].out_features
        ([37, 30, 23], 3)
    """
    check_arguments(iterate, locals())
    check_on_mismatch(on_mismatch)
    if optimizer is not None:
        check_holds(optimizer, model.parameters(), "model")
    criterion = importance or Magnitude(p=2)
    ignored, selected = selectors(ignore, "ignore"), None if only is None else selectors(only, "only")
    graph = trace(model, example_inputs, ignore=ignored, only=selected)
    names = as_names(graph.model, ignored, "ignore"), None if selected is None else as_names(graph.model, selected, "only")
    end = planning(graph, score(graph, criterion, data), budget)  # can it be reached? better told now than after training
    if end.left_out and steps > 1:
        raise PlanError(
            f"a plan that leaves out a layer ({next(iter(end.left_out))}) can not be followed by another: cut it out first, "
            "and iterate from that model"
        )
    bounds = budgets(budget, end.original, steps, schedule)
    small, whole, done = model, None, []
    for number, bound in enumerate(bounds):
        graph = graph if number == 0 else trace(small, example_inputs, ignore=names[0], only=names[1])
        decided = planning(graph, score(graph, criterion, data), bound)
        whole = decided if whole is None else compose(whole, decided)
        before, small = small, cut(small, decided)
        done.append(Step(number, bound, decided, verify(before, small, decided, example_inputs)))
        require_equal(done[-1].report, Iterated(small, whole, tuple(done)), on_mismatch)
        if optimizer is not None:
            transfer_optimizer(optimizer, decided)
        recover(small, number)
    assert whole is not None
    return Iterated(small, whole, tuple(done))
