"""The verbs that run several stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.cost import EnergyModel, LatencyTable
from bough.cutting import Verification, cut, rebuild, verify
from bough.cutting.verification import check_on_mismatch, require_equal
from bough.errors import PlanError
from bough.importance import Criterion, Data, DataCriterion, Magnitude, score
from bough.importance.data import of
from bough.importance.score import called
from bough.planning import Allocator, Budget, Options, Plan, planned
from bough.planning.allocation import LeastError, allocator
from bough.recovery import Refit, refit_
from bough.recovery.inputs import refuse_once
from bough.targeting import of_this_machine, targeted
from bough.tracing import trace


@dataclass(frozen=True, slots=True)
class Result:
    """What `prune` gives: the cut model, the plan it was cut by, the proof of its equality, what refit did to it after.

    `latency`: for a budget of latency, the seconds that were measured of the cut model.
    """

    model: nn.Module
    plan: Plan
    report: Verification
    latency: float | None = None
    refit: Refit | None = None

    def to_dict(self) -> dict[str, Any]:
        measured = {} if self.latency is None else {"latency": self.latency}
        refitted = {} if self.refit is None else {"refit": self.refit.to_dict()}
        return {"plan": self.plan.to_dict(), "verification": self.report.to_dict(), **measured, **refitted}

    def __str__(self) -> str:
        return "\n".join(map(str, (self.plan, self.report, *(() if self.refit is None else (self.refit,)))))


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    importance: str | Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    refit: bool = False,
    ignore: Iterable[str] = (),
    allocation: str | Allocator = "global",
    round_to: int | str = 1,
    minimum: float | Mapping[str, float] = 1,
    drop: Iterable[str] = (),
    exact_only: bool = False,
    uniform: bool = False,
    ragged: bool = False,
    on_conflict: str = "freeze",
    table: LatencyTable | None = None,
    energy: EnergyModel | None = None,
    on_mismatch: str = "raise",
) -> Result:
    """Traces, scores, plans, cuts and verifies, and with `refit` refits on `data`; `model` stays as it was.

    Args and errors as for `trace`, `score`, `plan`, `refit` and `cut` (or `rebuild`, where `on_conflict="rebuild"` and the
    model's Python contradicts the plan); `importance` is `Magnitude(p=2)` unless given, `data` what it is computed from. For
    a budget of latency `table` is needed; where it is of the machine at hand the cut model is measured and planned anew until
    it meets the budget (see `meet_latency`), otherwise the table's word is taken, and the plan's notes say so.
    A cut model that `verify` finds different from the masked original raises a `VerificationError`, to which the result is
    attached; with `on_mismatch="return"` it is returned.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%"))
        >>> result.model[0].out_features, result.report.equal
        (3, True)
    """
    check_arguments(prune, locals())
    check_on_mismatch(on_mismatch)
    if refit and data is None:
        raise PlanError("prune(refit=True) needs data: unlabelled batches, such as data=loader")
    if refit and data is not None:
        refuse_once(of(data))
    if refit and on_conflict == "rebuild":
        raise PlanError("prune(refit=True) solves for weights of the model's own layers: use on_conflict='freeze' or 'raise'")
    how = Options(
        allocation=allocation, round_to=round_to, minimum=minimum, drop=drop, exact_only=exact_only, uniform=uniform,
        ragged=ragged, on_conflict=on_conflict, table=table, energy=energy,
    )  # fmt: skip
    criterion = called(importance or Magnitude(p=2))
    _check_errors(criterion, how)
    graph = trace(model, example_inputs, ignore=ignore)
    scores = score(graph, criterion, data)
    if budget.latency is not None and table is not None and of_this_machine(table, graph):
        timed = targeted(graph, scores, budget, table, how)
        small, decided, seconds = timed.model, timed.plan, timed.seconds
    else:
        decided, seconds = planned(graph, scores, budget, how), None
        small = rebuild(model, decided, example_inputs) if decided.rebuild else cut(model, decided)
    report = verify(model, small, decided, example_inputs)
    verified = Result(small, decided, report, seconds)
    require_equal(report, verified, on_mismatch)
    if not refit:
        return verified
    assert data is not None
    return Result(small, decided, report, seconds, refit_(model, small, decided, data, example_inputs=example_inputs))


def _check_errors(criterion: Criterion | DataCriterion, how: Options) -> None:
    if isinstance(allocator(how.allocation), LeastError) and not getattr(criterion, "gives_errors", False):
        raise PlanError(
            f"{type(criterion).__name__} does not say that its scores are errors, which allocation='error' takes: use "
            "importance=OBS(relative=True) with data, or set gives_errors = True on a criterion of your own"
        )
