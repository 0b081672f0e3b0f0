"""How a row of a comparison is made: score, plan, cut, refit, evaluate, each of them timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bough.calibration import Data
from bough.comparing.metrics import Evaluate, measured
from bough.comparing.named_criteria import NamedCriterion
from bough.comparing.rows import DENSE, Row
from bough.cutting import cut, rebuild
from bough.cutting.cut import copied
from bough.errors import BoughError, ComparisonError
from bough.graph import Graph
from bough.importance import score
from bough.planning import Allocator, Budget, Plan, plan
from bough.recovery import refit_


@dataclass(frozen=True, slots=True)
class Scored:
    """A entry's scores, or why there are none."""

    entry: NamedCriterion
    seconds: float
    values: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """All that a row is made from, besides what it is called."""

    graph: Graph
    example_inputs: Any
    evaluate: Evaluate
    data: Data | None
    refit: bool
    planning: Mapping[str, Any]
    ways: Mapping[str, Allocator]
    bounds: Mapping[str, Budget]

    def dense(self) -> Row:
        """The row of the model as it is. What `evaluate` raises here goes to the caller: no row would come of it."""
        seconds: dict[str, float] = {}
        own = copied(self.graph.model, lambda name, tensor, parameter: tensor.clone())[0]
        with _timed(seconds, "evaluate"):
            metrics = measured(self.evaluate, own).values
        cost = self.graph.cost().to_dict()
        return Row(DENSE, metrics=metrics, cost=cost, kept=dict.fromkeys(cost, 1.0), seconds=seconds)

    def scored(self, entry: NamedCriterion) -> Scored:
        start = time.perf_counter()
        try:
            values = score(self.graph, entry.criterion, self.data)
        except Exception as error:
            return Scored(entry, time.perf_counter() - start, error=_said(error))
        return Scored(entry, time.perf_counter() - start, values)

    def row(self, row: Row, scored: Scored, metrics: Sequence[str]) -> Row:
        """`row` with what came of it, or as far as it came and the error."""
        found: dict[str, Any] = {"seconds": {"score": scored.seconds}, "error": scored.error}
        if scored.error is None:
            try:
                self._make(found, row, scored, metrics)
            except Exception as error:
                found["error"] = _said(error)
        return replace(row, **found)

    def _make(self, found: dict[str, Any], row: Row, scored: Scored, metrics: Sequence[str]) -> None:
        seconds, model = found["seconds"], self.graph.model
        with _timed(seconds, "plan"):
            plan_ = plan(
                self.graph, scored.values, self.bounds[row.budget], allocation=self.ways[row.allocation], **self.planning
            )  # fmt: skip
        found.update(_costs(plan_), notes=_notes(plan_))
        small = rebuild(model, plan_, self.example_inputs) if plan_.rebuild else cut(model, plan_)
        if self.refit:
            assert self.data is not None
            with _timed(seconds, "refit"):
                refitted = refit_(model, small, plan_, self.data, example_inputs=self.example_inputs)
            found["notes"] += tuple(f"not refitted: {name}: {why}" for name, why in refitted.skipped.items())
        with _timed(seconds, "evaluate"):
            given = measured(self.evaluate, small).values
        if list(given) != metrics:
            raise ComparisonError(f"evaluate gave {', '.join(given)}; for the dense model it gave {', '.join(metrics)}")
        found["metrics"] = given


def _costs(plan_: Plan) -> dict[str, Any]:
    cost, original = plan_.cost.to_dict(), plan_.original.to_dict()
    return {"cost": cost, "kept": {k: v / original[k] if original[k] else 1.0 for k, v in cost.items()}}


def _notes(plan_: Plan) -> tuple[str, ...]:
    return (*plan_.notes, *(f"not cut: {name}: {why}" for name, why in plan_.frozen.items()))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, BoughError) else f"{type(error).__name__}: {error}"


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = time.perf_counter() - start
