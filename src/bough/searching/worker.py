"""A worker of a search: takes candidates from the study, makes their models and evaluates them, until all are done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bough.comparing.metrics import Evaluate, measured
from bough.errors import BoughError, SearchError
from bough.searching.assessment import Divergence, MeasuredCosts
from bough.searching.candidate import Candidate
from bough.searching.goals import Goals
from bough.searching.makers import Maker
from bough.searching.proposals import Proposals, known_keys
from bough.searching.shared_study import Job, SharedStudy
from bough.searching.space import Choice, SearchSpace
from bough.searching.storages import Storage

Screen = Callable[[nn.Module, float], float]
_OFFSPRING = 8  # mutations that are screened for one candidate of the local search
_PAUSE = 0.2  # seconds between looks at the last trials of other workers
_GIVE_UP = 10  # failures, and no success, after which a search ends


@dataclass(frozen=True, slots=True)
class Worker:
    """All that a worker needs.

    Attributes:
        storage, study: where trials are taken from.
        space, goals, proposals: of the search.
        make: candidate -> model.
        evaluate: model -> metrics.
        metrics: names that `evaluate` has to give.
        trials: how many candidates the study evaluates in all.
        screen: (model, share of the evaluation data) -> estimate of the first objective, for the local search.
        after: called whenever a trial is done.
        checks: costs that are measured of each candidate's model, and their bounds.
        diverges: model -> how far its outputs are from the dense model's.
    """

    storage: Storage
    study: SharedStudy
    space: SearchSpace
    goals: Goals
    proposals: Proposals
    make: Maker
    evaluate: Evaluate
    metrics: tuple[str, ...]
    trials: int
    screen: Screen | None = None
    after: Callable[[], None] = lambda: None
    checks: tuple[MeasuredCosts, ...] = ()
    diverges: Divergence | None = None

    def run(self) -> None:
        """Work until the study has all its trials.

        Raises:
            SearchError: the first candidates all failed.
        """
        screened: list[Choice] = []
        with self.storage.working() as name:
            while True:
                job = self.study.start(name, self.trials, screened)
                screened = []
                if job == "done":
                    return
                if isinstance(job, str):
                    time.sleep(_PAUSE)
                    continue
                with self.storage.beating(self.study.trial_id(job.trial.number)):
                    self.study.finish(job, self._found(job))
                self.after()
                self._check_failures()
                if self.screen is not None and len(self.study.points()) < self.trials:
                    screened = self._screened()

    def _found(self, job: Job) -> dict[str, Any]:
        """Evaluate a candidate; an error is kept in place of its metrics."""
        candidate, seconds = job.candidate, dict[str, float]()
        cost = self.space.pricing.cost(candidate.counts, candidate.left_out).to_dict()
        found: dict[str, Any] = {"cost": cost, "metrics": {}, "values": [], "violations": {}, "seconds": seconds, "error": None}
        try:
            with _timed(seconds, "make"):
                model = self.make(candidate.counts, candidate.left_out)
            with _timed(seconds, "evaluate"):
                metrics = measured(self.evaluate, model)
            known = self._assessed(model, seconds)
            if set(metrics.values) != set(self.metrics):
                names = ", ".join(metrics.values)
                raise SearchError(f"evaluate gave {names}; for the dense model it gave {', '.join(self.metrics)}")
        except Exception as error:
            return {**found, "error": str(error) if isinstance(error, BoughError) else f"{type(error).__name__}: {error}"}
        values, violations = self.goals.values(metrics.values, cost), self.goals.violations(metrics.values)
        for check in self.checks:
            violations |= check.violations(known["measured"])
        return {
            **found, "metrics": metrics.values, "errors": metrics.errors, "values": values, "violations": violations, **known
        }  # fmt: skip

    def _assessed(self, model: nn.Module, seconds: dict[str, float]) -> dict[str, Any]:
        """Return what is known of a model besides the user's metrics."""
        known: dict[str, Any] = {"measured": {}}
        if self.diverges is not None:
            with _timed(seconds, "diverge"):
                value = self.diverges(model)
            known["divergence"] = value if math.isfinite(value) else None
        if self.checks:
            with _timed(seconds, "measure"):
                for check in self.checks:
                    known["measured"] |= check.measure(model)
        return known

    def _check_failures(self) -> None:
        points = self.study.points()
        if len(points) >= _GIVE_UP and all(p.error for p in points):
            raise SearchError(f"all of {len(points)} candidates failed, the first one by: {points[0].error}")

    def _screened(self) -> list[Choice]:
        """Return mutations of the best candidates, the best of them first, by successive halving over the evaluation data.

        Source: Jamieson and Talwalkar, 2016 (successive halving). Each round evaluates the better half on twice the data.
        """
        assert self.screen is not None
        trials = self.study.trials()
        rng = self.proposals.rng(len(trials), purpose=1)
        found: dict[str, tuple[Choice, Candidate]] = {}
        known = known_keys(trials)
        for _ in range(8 * _OFFSPRING):
            choice = self.proposals.neighbour(trials, rng)
            candidate = self.space.candidate(choice)
            if len(found) < _OFFSPRING and candidate.key not in known:
                found.setdefault(candidate.key, (choice, candidate))
        left, share = list(found.values()), 1.0 / 2 ** max(1, math.ceil(math.log2(max(len(found), 2))))
        sign = -1.0 if next(iter(self.goals.directions.values())) == "max" else 1.0
        while len(left) > 1:
            scores = [sign * self._estimate(candidate, share) for _, candidate in left]
            left = [left[i] for i in np.argsort(scores, kind="stable")[: len(left) // 2]]
            share *= 2
        return [choice for choice, _ in left]

    def _estimate(self, candidate: Candidate, share: float) -> float:
        """Return the screen's figure; a candidate that fails is the worst."""
        assert self.screen is not None
        sign = 1.0 if next(iter(self.goals.directions.values())) == "max" else -1.0
        try:
            value = float(self.screen(self.make(candidate.counts, candidate.left_out), share))
        except BoughError:
            return -sign * math.inf
        return value if math.isfinite(value) else -sign * math.inf


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = time.perf_counter() - start
