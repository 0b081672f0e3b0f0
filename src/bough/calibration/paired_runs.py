"""Staged runs of two models on the same batches, with the tensors of chosen operators observed at each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bough.calibration.data import Data
from bough.calibration.staged_run import MAX_PAUSED, Observed, StagedRun, TapPoint, current_run
from bough.calibration.taps import Tap, tapped
from bough.errors import PlanError
from bough.graph import Graph, OpRecord


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A model that is run in stages.

    Attributes:
        graph: of the model.
        stops: the tap point at which the run pauses, one per stage, in the order of the run; None for a stage in which the
            run stays where it is.
        needed: for each observed tap point, the last stage that reads its tensors; all stops are among the points.
    """

    graph: Graph
    stops: tuple[TapPoint | None, ...]
    needed: Mapping[TapPoint, int]


class PairedRuns:
    """Context manager that runs two models on each batch, from stage to stage.

    Args:
        models: the two models.
        data: calibration data that gives the same batches in each iteration.
        max_paused: maximum number of half-finished runs kept in memory, at most `MAX_PAUSED`; further batches are re-run for
            each stage.
    """

    def __init__(self, models: tuple[StagedModel, StagedModel], data: Data, max_paused: int) -> None:
        self.models, self.data, self.max_paused = models, data, min(max_paused, MAX_PAUSED)
        self._paused: list[tuple[StagedRun, StagedRun]] = []
        self._batch_count = -1
        self._stack = ExitStack()

    def __enter__(self) -> PairedRuns:
        for model in self.models:
            self._stack.enter_context(tapped(model.graph, list(_taps(model))))
        return self

    def __exit__(self, *error: object) -> None:
        self.restart()
        self._stack.close()

    def restart(self) -> None:
        """End the paused runs, so that the next stage begins with new ones."""
        for pair in self._paused:
            _close(pair)
        self._paused.clear()

    def at_stage(self, stage: int) -> Iterator[tuple[Observed, Observed]]:
        """Yield, for each batch, the tensors observed in both runs when they have reached a stage.

        Stages have to be requested in ascending order.

        Raises:
            PlanError: the data is empty, or gives another number of batches than in the last iteration.
            TraceError: on this data a model takes another path than the traced one.
        """
        for pair in self._paused:
            yield self._advance(pair, stage)
        if len(self._paused) == self._batch_count:
            return
        count = 0
        for count, batch in enumerate(self.data.batches, 1):
            if count <= len(self._paused):
                continue
            pair = self._start(batch)
            try:
                yield self._advance(pair, stage)
            finally:
                if count == len(self._paused) + 1 <= self.max_paused:
                    self._paused.append(pair)
                else:
                    _close(pair)
        if count == 0 or self._batch_count not in (-1, count):
            raise PlanError(
                f"the data gives {count} batches, and gave {max(self._batch_count, 0)} before: it must give the same again"
            )
        self._batch_count = count

    def _start(self, batch: Any) -> tuple[StagedRun, StagedRun]:
        """Return new runs of both models on a batch."""
        first, second = (
            StagedRun(m.graph.model, lambda graph=m.graph: self.data.run(graph, batch))  # type: ignore[misc]
            for m in self.models
        )
        return first, second

    def _advance(self, pair: tuple[StagedRun, StagedRun], stage: int) -> tuple[Observed, Observed]:
        """Advance both runs to a stage and drop observed tensors that no later stage reads."""
        for run, model in zip(pair, self.models, strict=True):
            for point in [p for p in run.observed if model.needed[p] < stage]:
                del run.observed[point]
            if model.stops[stage] is not None:
                run.advance(stage)
        return pair[0].observed, pair[1].observed


def _close(pair: tuple[StagedRun, StagedRun]) -> None:
    for run in pair:
        run.close()


def _taps(model: StagedModel) -> Iterator[Tap]:
    """Yield the taps that record the tensors of a model's tap points and pause its runs."""
    for point, last in model.needed.items():
        stages = frozenset(stage for stage, stop in enumerate(model.stops) if stop == point)

        def read(
            op: OpRecord, tensors: Sequence[Tensor], point: TapPoint = point, last: int = last, stages: Any = stages
        ) -> None:
            run = current_run()
            if last >= run.stage:
                pauses_here = run.stage in stages  # otherwise later operators may change the tensors in place
                run.observed[point] = [t.detach() if pauses_here else t.detach().clone() for t in tensors]
            while run.stage in stages:  # adjacent stages may pause at the same point
                run.pause()

        yield Tap(point[0], read, results=point[1])
