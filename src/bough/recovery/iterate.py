"""`iterate`: cut in several steps, with recovery after each."""

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
from bough.importance import Criterion, DataCriterion, Magnitude, UnitScores, score
from bough.importance.score import with_data_reached
from bough.planning import Budget, Plan, plan
from bough.planning.compose import compose
from bough.recovery.schedule import Schedule, budgets, geometric
from bough.recovery.training import check_optimizer
from bough.tracing import trace
from bough.tracing.selection import Selection, as_names, selectors
from bough.tracing.typing.ties import Ties, tie_names

Planner = Callable[[Graph, UnitScores, Budget], Plan]


@dataclass(frozen=True, slots=True)
class Step:
    """One cut of several.

    Attributes:
        number: from 0.
        budget: what may remain after this step.
        plan: for the model before this step.
        report: comparison of the cut model with the masked model before it.
    """

    number: int
    budget: Budget
    plan: Plan
    report: Verification


@dataclass(frozen=True, slots=True)
class Iterated:
    """Result of `iterate`.

    Attributes:
        model: after the last step.
        plan: from the original model to `model`, all steps composed.
        steps: the record of each step.
    """

    model: nn.Module
    plan: Plan
    steps: tuple[Step, ...]

    @property
    def report(self) -> Verification:
        """The verification of the first step whose models differ, else that of the step with the largest error."""
        return max((s.report for s in self.steps), key=lambda report: (not report.equal, report.max_error))

    def to_dict(self) -> dict[str, Any]:
        """Return plan, costs and verifications as plain values, for JSON."""
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
    tie: Ties | None = None,
    optimizer: Optimizer | None = None,
    on_mismatch: str = "raise",
) -> Iterated:
    """Cut a copy of the model to `budget` in several steps, each scored and planned again, with recovery after each.

    Args:
        model, example_inputs, ignore, only, tie: as for `trace`; the model stays as it is.
        budget: for the last step; its percentages are of the original model in every step.
        recover: called with the cut model and the number of the step, from 0, after each cut; trains the model in place.
        steps: number of cuts.
        schedule: shares kept after each step: `geometric`, `linear`, `cubic` or a function of your own.
        importance: the criterion; `Magnitude(p=2)` unless given.
        data: batches for a criterion that needs them, as for `score`.
        planning: `plan`, or `plan` with options: `functools.partial(bough.plan, round_to=8)`.
        optimizer: of `model`; it is transferred through each cut with its state, so `recover` can continue with it.
        on_mismatch: "raise" if a step's cut model differs from the masked model before it (see `verify`), or "return" to
            continue.

    Raises:
        ArgumentError: an argument of another type.
        BudgetError: the last step's budget cannot be reached; raised before anything is cut.
        PlanError, ConflictError: as for `plan`.
        TrainingError: `optimizer` has no parameter of `model`.
        VerificationError: a step's cut does not verify; the steps so far are attached as `result`, and the model of the last
            one has not been trained.

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
        check_optimizer(optimizer, model.parameters(), "model")
    criterion = importance or Magnitude(p=2)
    ignored, selected = selectors(ignore, "ignore"), None if only is None else selectors(only, "only")
    graph = with_data_reached(trace(model, example_inputs, ignore=ignored, only=selected, tie=tie), [criterion])
    names = as_names(graph.model, ignored, "ignore"), None if selected is None else as_names(graph.model, selected, "only")
    ties = tie_names(graph.model, tie or {})
    last = planning(graph, score(graph, criterion, data), budget)  # fails now, and not after training, if out of reach
    if last.left_out and steps > 1:
        raise PlanError(
            f"a plan that leaves out a layer ({next(iter(last.left_out))}) can not be followed by another: cut it out first, "
            "and iterate from that model"
        )
    bounds = budgets(budget, last.original, steps, schedule)
    small, composed, done = model, None, []
    for number, bound in enumerate(bounds):
        if number > 0:
            graph = with_data_reached(trace(small, example_inputs, ignore=names[0], only=names[1], tie=ties), [criterion])
        step_plan = planning(graph, score(graph, criterion, data), bound)
        composed = step_plan if composed is None else compose(composed, step_plan)
        before, small = small, cut(small, step_plan)
        done.append(Step(number, bound, step_plan, verify(before, small, step_plan, example_inputs)))
        require_equal(done[-1].report, Iterated(small, composed, tuple(done)), on_mismatch)
        if optimizer is not None:
            transfer_optimizer(optimizer, step_plan)
        recover(small, number)
    assert composed is not None
    return Iterated(small, composed, tuple(done))
