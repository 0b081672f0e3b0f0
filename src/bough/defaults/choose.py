"""Choose criterion and allocation by trial: cut, refit on a little data, and compare outputs on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.cutting import cut
from bough.defaults.candidates import Candidate
from bough.defaults.discrepancy import discrepancy, outputs_on
from bough.defaults.sample import Sample
from bough.errors import BudgetError, PlanError, TraceError
from bough.graph import Graph
from bough.importance import score
from bough.planning import Budget, OnConflict, Options, Plan, planned
from bough.recovery import refit_

_SITES = 32  # output positions of each sample that trials look at
_MANY = 4  # products that read a group, from which on it is tried left whole

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was tried: how far the cut and refitted model's outputs are from the dense model's.

    `discrepancy`: see `bough.defaults.discrepancy`; None where the candidate failed, for the reason in `failure`. `whole`:
    the groups that were left whole because many layers read them.
    """

    importance: str
    allocation: str
    discrepancy: float | None
    failure: str = ""
    whole: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = f"failed ({self.failure})" if self.discrepancy is None else f"{self.discrepancy:.3g}"
        return f"{self.importance} with {self.allocation}{_left_whole(self.whole)}: {found}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What `prune` chose where the user left it open.

    Attributes:
        importance: the criterion that scored the units.
        allocation: how the budget was met.
        data: what the model was scored and refitted on; "" without data.
        refit: whether the cut model was refitted.
        whole: the groups that were left whole because many layers read them, as a trial showed to be better.
        trials: the candidates that were compared; empty where there was only one.
        notes: what was not done, and why; what real data would bring.
    """

    importance: str
    allocation: str
    data: str = ""
    refit: bool = False
    whole: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        used = f", on {self.data}" if self.data else ""
        way = f"{self.importance}, allocation {self.allocation}{_left_whole(self.whole)}"
        lines = [f"units chosen by {way}; refit: {'yes' if self.refit else 'no'}{used}"]
        if len(self.trials) > 1:
            lines.append(f"best of {len(self.trials)} by how little the outputs differ: {'; '.join(map(str, self.trials))}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False, slots=True)
class Chosen:
    """The candidate that won, with its scores and plan, the groups that it leaves whole, and the trials that it won."""

    candidate: Candidate
    scores: Scores
    options: Options
    plan: Plan
    trials: tuple[Trial, ...] = ()
    whole: tuple[str, ...] = ()


def choose(
    graph: Graph, budget: Budget, options: Options, found: Sequence[Candidate], sample: Sample | None, *, refit: bool
) -> Chosen:
    """Return the candidate of `found` whose cut model's outputs differ the least from the dense model's.

    Each candidate is scored and planned, and its cut model is refitted on `sample.fit` (if `refit`) and compared with the
    dense model on `sample.judge`. If the best one cuts groups that many layers read, such as residual streams, it is tried
    once more with these left whole. A single candidate is not tried, and neither are plans that `rebuild` carries out, since
    an exported program takes inputs of the example's shapes only: of these the first candidate is taken.

    Raises:
        BudgetError: the budget cannot be reached.
        PlanError, TraceError: every candidate failed; the first one's error.
    """
    if sample is not None and sample.data.distributed and len(found) > 1:
        raise PlanError(
            "prune compares several criteria or allocations on a part of the data, which takes one process: give importance= "
            "and allocation=, or all batches to one process"
        )
    if sample is None or len(found) == 1 or options.on_conflict == OnConflict.REBUILD:
        return _first_planned(graph, budget, options, found, sample)
    return _Trials(graph, budget, options, sample, refit).best(found)


def _first_planned(
    graph: Graph, budget: Budget, options: Options, found: Sequence[Candidate], sample: Sample | None
) -> Chosen:  # fmt: skip
    """Return the first candidate that can be planned."""
    errors: list[PlanError | TraceError] = []
    for candidate in found:
        try:
            scores = score(graph, candidate.importance, sample.data if sample else None)
            planning = replace(options, allocation=candidate.allocation)
            return Chosen(candidate, scores, planning, planned(graph, scores, budget, planning))
        except BudgetError:
            raise
        except (PlanError, TraceError) as error:
            errors.append(error)
    raise errors[0]


class _Trials:
    """Candidates that are cut, refitted and compared with the dense model, each once."""

    def __init__(self, graph: Graph, budget: Budget, options: Options, sample: Sample, refit: bool) -> None:
        self.graph, self.budget, self.options, self.sample, self.refit = graph, budget, options, sample, refit
        self.trials: list[Trial] = []
        self.errors: list[PlanError | TraceError] = []
        self._scored: dict[str | int, Scores] = {}
        self._expected = outputs_on(graph, graph.model, sample.judge)

    def best(self, found: Sequence[Candidate]) -> Chosen:
        """Return the candidate of the least discrepancy."""
        tried = [t for t in (self._tried(candidate) for candidate in found) if t is not None]
        if not tried:
            raise self.errors[0]
        apart, chosen = min(tried, key=lambda t: t[0])
        streams = tuple(
            g.name for g in self.graph.groups if g.readers >= _MANY and chosen.plan.groups.get(g.name, (g.size,))[0] < g.size
        )
        again = self._tried(chosen.candidate, streams) if streams else None
        if again is not None and again[0] < apart:
            chosen = again[1]
        return replace(chosen, trials=tuple(self.trials))

    def _tried(self, candidate: Candidate, whole: tuple[str, ...] = ()) -> tuple[float, Chosen] | None:
        """Note a trial, and return its discrepancy with the plan; None where the candidate failed.

        Raises:
            BudgetError: the budget cannot be reached, with no group left whole.
        """
        try:
            scores = self._scores(candidate.importance)
            planning = replace(self.options, allocation=candidate.allocation, whole=whole)
            plan = planned(self.graph, scores, self.budget, planning)
            apart = discrepancy(self._expected, self._outputs(plan))
        except (PlanError, TraceError, BudgetError) as error:
            if isinstance(error, BudgetError):
                if not whole:
                    raise
            else:
                self.errors.append(error)
            self.trials.append(Trial(*candidate.names, None, str(error), whole))
            return None
        self.trials.append(Trial(*candidate.names, apart, "", whole))
        return apart, Chosen(candidate, scores, planning, plan, (), whole)

    def _scores(self, importance: Any) -> Scores:
        key = importance if isinstance(importance, str) else id(importance)
        if key not in self._scored:
            self._scored[key] = score(self.graph, importance, self.sample.data)
        return self._scored[key]

    def _outputs(self, plan: Plan) -> list[list[Any]]:
        """Return what the model that `plan` cuts gives on `sample.judge`, once it is refitted on `sample.fit`."""
        small = cut(self.graph.model, plan)
        if self.refit:
            with suppress(PlanError):  # nothing can be refitted: `prune` says so of the candidate that wins
                refit_(self.graph.model, small, plan, self.sample.fit, sites=_SITES, example_inputs=self.graph.calls)
        return outputs_on(self.graph, small, self.sample.judge)


def _left_whole(groups: tuple[str, ...]) -> str:
    """Return the words for groups that are left whole."""
    return f" and {', '.join(groups)} left whole" if groups else ""
