"""Runs of two models on the same batches, from stage to stage, with what chosen ops see on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.importance.data import Data
from bough.recovery.suspended import Suspended, running
from bough.tracing.taps import Tap, tapped

WAITING = 256  # batches at most: each waits in two threads

Place = tuple[int, bool]
"""(op, whether its results; else its arguments)."""

Seen = Mapping[Place, list[Tensor]]


@dataclass(frozen=True, slots=True)
class Route:
    """Of one model's run: where it stops at each stage, and until which stage what is seen where is needed."""

    graph: Graph
    stops: tuple[Place, ...]
    needed: Mapping[Place, int]


class Lockstep:
    """Use as a context manager. `room`: how many batches may wait where they are, `WAITING` at most; others are run anew for
    each stage."""

    def __init__(self, routes: tuple[Route, Route], data: Data, room: int) -> None:
        self.routes, self.data, self.room = routes, data, min(room, WAITING)
        self._held: list[tuple[Suspended, Suspended]] = []
        self._batches = -1
        self._stack = ExitStack()

    def __enter__(self) -> Lockstep:
        for route in self.routes:
            self._stack.enter_context(tapped(route.graph, list(_taps(route))))
        return self

    def __exit__(self, *error: Any) -> None:
        self.restart()
        self._stack.close()

    def restart(self) -> None:
        """Ends the runs that wait: the next stage begins with new ones."""
        for pair in self._held:
            _close(pair)
        self._held.clear()

    def at(self, stage: int) -> Iterator[tuple[Seen, Seen]]:
        """For each batch: what both runs have seen when they stand at a stage. Stages are asked for in order."""
        for pair in self._held:
            yield self._advanced(pair, stage)
        if len(self._held) == self._batches:
            return
        found = 0
        for found, batch in enumerate(self.data.batches, 1):
            if found <= len(self._held):
                continue
            pair = self._started(batch)
            try:
                yield self._advanced(pair, stage)
            finally:
                if found == len(self._held) + 1 <= self.room:
                    self._held.append(pair)
                else:
                    _close(pair)
        if found == 0 or self._batches not in (-1, found):
            raise PlanError(
                f"the data gives {found} batches, and gave {max(self._batches, 0)} before: it must give the same anew"
            )
        self._batches = found

    def _started(self, batch: Any) -> tuple[Suspended, Suspended]:
        one, other = (
            Suspended(r.graph.model, lambda graph=r.graph: self.data.run(graph, batch))  # type: ignore[misc]
            for r in self.routes
        )
        return one, other

    def _advanced(self, pair: tuple[Suspended, Suspended], stage: int) -> tuple[Seen, Seen]:
        for run, route in zip(pair, self.routes, strict=True):
            for place in [p for p in run.seen if route.needed[p] < stage]:
                del run.seen[place]
            run.advance(stage)
        return pair[0].seen, pair[1].seen


def _close(pair: tuple[Suspended, Suspended]) -> None:
    for run in pair:
        run.close()


def _taps(route: Route) -> Iterator[Tap]:
    stages: dict[Place, int] = {place: stage for stage, place in enumerate(route.stops)}
    for place, last in route.needed.items():

        def read(op: OpRecord, tensors: Sequence[Tensor], place: Place = place, last: int = last) -> None:
            run = running()
            if last >= run.until:
                stands = stages.get(place) == run.until  # else what comes next in the run may change them in place
                run.seen[place] = [t.detach() if stands else t.detach().clone() for t in tensors]
            if stages.get(place) == run.until:
                run.stop()

        yield Tap(place[0], read, results=place[1])
