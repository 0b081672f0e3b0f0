"""The verbs that run several stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.cutting import Verification, cut, verify
from bough.errors import PlanError
from bough.importance import Criterion, Data, DataCriterion, Magnitude, score
from bough.planning import Budget, Plan, plan
from bough.recovery import Refit, refit_
from bough.tracing import trace


@dataclass(frozen=True, slots=True)
class Result:
    """What `prune` gives: the cut model, the plan it was cut by, the proof of its equality, what refit did to it after."""

    model: nn.Module
    plan: Plan
    report: Verification
    refit: Refit | None = None

    def to_dict(self) -> dict[str, Any]:
        refitted = {} if self.refit is None else {"refit": self.refit.to_dict()}
        return {"plan": self.plan.to_dict(), "verification": self.report.to_dict(), **refitted}

    def __str__(self) -> str:
        return "\n".join(map(str, (self.plan, self.report, *(() if self.refit is None else (self.refit,)))))


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    importance: Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    refit: bool = False,
    ignore: Iterable[str] = (),
    allocation: str = "global",
    round_to: int = 1,
    minimum: float = 1,
    exact_only: bool = False,
    on_conflict: str = "freeze",
) -> Result:
    """Traces, scores, plans, cuts and verifies, and with `refit` refits on `data`; `model` stays as it was.

    Args and errors as for `trace`, `score`, `plan`, `cut` and `refit`; `importance` is `Magnitude(p=2)` unless given.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%"))
        >>> result.model[0].out_features, result.report.equal
        (3, True)
    """
    if refit and data is None:
        raise PlanError("prune(refit=True) needs data: unlabelled batches, such as data=loader")
    graph = trace(model, example_inputs, ignore=ignore)
    scores = score(graph, importance or Magnitude(p=2), data)
    decided = plan(
        graph, scores, budget, allocation=allocation, round_to=round_to, minimum=minimum, exact_only=exact_only,
        on_conflict=on_conflict,
    )  # fmt: skip
    small = cut(model, decided)
    report = verify(model, small, decided, example_inputs)
    if not refit:
        return Result(small, decided, report)
    assert data is not None
    return Result(small, decided, report, refit_(model, small, decided, data, example_inputs=example_inputs))
