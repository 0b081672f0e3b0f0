"""The verbs that run several stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.cost import EnergyModel, LatencyTable
from bough.cutting import Verification, cut, rebuild, verify
from bough.importance import Criterion, Data, DataCriterion, Magnitude, score
from bough.planning import Allocator, Budget, Plan, plan
from bough.targeting import meet_latency, of_this_machine
from bough.tracing import trace


@dataclass(frozen=True, slots=True)
class Result:
    """What `prune` gives: the cut model, the plan it was cut by, and the proof of its equality.

    `latency`: for a budget of latency, the seconds that were measured of the cut model.
    """

    model: nn.Module
    plan: Plan
    report: Verification
    latency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        measured = {} if self.latency is None else {"latency": self.latency}
        return {"plan": self.plan.to_dict(), "verification": self.report.to_dict(), **measured}

    def __str__(self) -> str:
        return f"{self.plan}\n{self.report}"


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    importance: Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    ignore: Iterable[str] = (),
    allocation: str | Allocator = "global",
    round_to: int | str = 1,
    minimum: float = 1,
    exact_only: bool = False,
    uniform: bool = False,
    on_conflict: str = "freeze",
    table: LatencyTable | None = None,
    energy: EnergyModel | None = None,
) -> Result:
    """Traces, scores, plans, cuts and verifies; `model` stays as it was.

    Args and errors as for `trace`, `score`, `plan` and `cut` (or `rebuild`, where `on_conflict="rebuild"` and the model's
    Python contradicts the plan); `importance` is `Magnitude(p=2)` unless given, `data` what it is computed from. For a budget
    of latency `table` is needed; where it is of the machine at hand the cut model is measured and planned anew until it
    meets the budget (see `meet_latency`), otherwise the table's word is taken, and the plan's notes say so.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%"))
        >>> result.model[0].out_features, result.report.equal
        (3, True)
    """
    graph = trace(model, example_inputs, ignore=ignore)
    scores = score(graph, importance or Magnitude(p=2), data)
    how: dict[str, Any] = {
        "allocation": allocation, "round_to": round_to, "minimum": minimum, "exact_only": exact_only, "uniform": uniform,
        "on_conflict": on_conflict, "energy": energy,
    }  # fmt: skip
    if budget.latency is not None and table is not None and of_this_machine(table, graph):
        timed = meet_latency(graph, scores, budget, table, **how)
        small, decided, seconds = timed.model, timed.plan, timed.seconds
    else:
        decided, seconds = plan(graph, scores, budget, table=table, **how), None
        small = rebuild(model, decided, example_inputs) if decided.rebuild else cut(model, decided)
    return Result(small, decided, verify(model, small, decided, example_inputs), seconds)
