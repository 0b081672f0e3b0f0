"""A study that workers share: which trial a worker takes next, and what came of each; no trial is lost or run twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bough.errors import SearchError
from bough.searching.candidate import Candidate
from bough.searching.goals import Goals
from bough.searching.points import Point
from bough.searching.proposals import FOUND, Proposals, is_lost
from bough.searching.space import Choice, SearchSpace
from bough.searching.storages import MADE, Storage

_RUN = "run"
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


@dataclass(frozen=True, slots=True)
class Job:
    """A trial that this worker evaluates."""

    trial: optuna.Trial
    candidate: Candidate
    origin: str


class SharedStudy:
    """One study in a storage.

    Args:
        storage: where it is kept.
        name: of the study; a database holds several.
        identity: what distinguishes this search from others; workers and resumed runs must agree.
        goals: objectives and bounds.
        space, proposals: what is searched, and how.

    Raises:
        SearchError: the study in the storage is of another model, other weights or another call.
    """

    def __init__(
        self, storage: Storage, name: str, identity: Mapping[str, str], goals: Goals, space: SearchSpace, proposals: Proposals
    ) -> None:  # fmt: skip
        self._storage, self._goals, self._space, self._proposals = storage, goals, space, proposals
        with storage.guard(), _quiet():
            directions = [_DIRECTIONS[d] for d in goals.directions.values()]
            there = {s.study_name for s in optuna.get_all_study_summaries(storage.backend, include_best_trial=False)}
            if name in there:
                self._check(optuna.load_study(study_name=name, storage=storage.backend), dict(identity), name)
            self._study = optuna.create_study(
                storage=storage.backend, sampler=proposals, study_name=name, directions=directions, load_if_exists=True
            )
            if _RUN not in self._study.user_attrs:
                self._study.set_user_attr(_RUN, dict(identity))

    def start(self, worker: str, trials: int, preferred: list[Choice]) -> Job | str:
        """Return the next trial of this worker, "wait" while the last ones are others', or "done".

        Args:
            worker: its name.
            trials: how many candidates the study evaluates in all.
            preferred: choices to prefer over what the method draws.
        """
        with self._storage.guard():
            self._sweep()
            every = self.trials()
            running = [t for t in every if t.state == TrialState.RUNNING]
            finished = sum(FOUND in t.user_attrs for t in every if t.state != TrialState.RUNNING)
            if finished + len(running) >= trials:
                return "wait" if running else "done"
            self._proposals.preferred = preferred
            with _quiet():
                trial = self._study.ask(self._proposals.distributions)
            candidate = self._space.candidate(self._proposals.choice_of(trial.params))
            if self._proposals.used_up:
                self._proposals.used_up = False
                self._study.tell(trial, state=TrialState.FAIL)
                return "wait" if running else "done"
            made = {"worker": worker, "key": candidate.key, "origin": self._proposals.origin}
            with self._storage.beating(self.trial_id(trial.number)):  # so that the first heartbeat is there before the name is
                trial.set_user_attr(MADE, made)
            return Job(trial, candidate, self._proposals.origin)

    def finish(self, job: Job, found: Mapping[str, Any]) -> None:
        """Record what came of a trial; `found` is plain data, see `Point`."""
        values = found["values"]
        for name, value in found["violations"].items():
            job.trial.set_constraint(name, value)
        job.trial.set_user_attr(FOUND, dict(found))
        self._tell(job.trial.number, values)

    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def trial_id(self, number: int) -> int:
        """Return the id by which the storage knows a trial."""
        storage = self._storage.backend
        return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(self._study.study_name), number)

    def points(self) -> tuple[Point, ...]:
        """Return what came of every trial that is done, in the order in which they began."""
        return tuple(self._point(t) for t in self.trials() if FOUND in t.user_attrs and t.state != TrialState.RUNNING)

    def lost(self) -> int:
        """Return the number of trials whose workers died; their candidates are evaluated by later trials."""
        return sum(is_lost(t) for t in self.trials())

    def noted(self, name: str) -> Any:
        """Return a value that `note` has put into the study, or None."""
        return self._study.user_attrs.get(name)

    def note(self, name: str, value: Any) -> None:
        """Put plain data into the study."""
        self._study.set_user_attr(name, value)

    def _sweep(self) -> None:
        """End the trials of dead workers: as evaluated where the result is there, as lost where it is not."""
        running = [t for t in self.trials() if t.state == TrialState.RUNNING]
        for t in self._storage.stale(self._study, running):
            self._tell(t.number, t.user_attrs.get(FOUND, {}).get("values", ()))

    def _tell(self, number: int, values: Any) -> None:
        if len(values):
            self._study.tell(number, list(values), skip_if_finished=True)
        else:
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _point(self, trial: FrozenTrial) -> Point:
        found, made = dict(trial.user_attrs[FOUND]), trial.user_attrs[MADE]
        candidate = self._space.candidate(self._proposals.choice_of(trial.params))
        found["values"] = tuple(found["values"])
        return Point(
            trial.number, made["origin"], candidate.counts, candidate.left_out, worker=made["worker"], **found
        )  # fmt: skip

    def _check(self, study: optuna.Study, identity: dict[str, str], name: str) -> None:
        there = study.user_attrs.get(_RUN)
        if there is None:
            if study.get_trials(deepcopy=False):
                raise SearchError(f"the study {name!r} in the storage is not of bough: give another name or storage")
            return
        other = [k for k in {**there, **identity} if there.get(k) != identity.get(k)]
        if other:
            said = "; ".join(f"{k} is {identity.get(k)!r} here, {there.get(k)!r} there" for k in other)
            hint = " (is the model built with random weights? seed them)" if other == ["weights"] else ""
            raise SearchError(
                f"the study {name!r} in the storage is of another search: {said}{hint}. Give another name or storage"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from logging that a study was created, and from asking for Study.optimize."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            yield
    finally:
        optuna.logging.set_verbosity(level)
