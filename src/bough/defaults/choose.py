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
from bough.planning import Budget, Options, Plan, planned
from bough.recovery import refit_

_SITES = 32  # output positions of each sample that trials look at

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was tried: how far the cut and refitted model's outputs are from the dense model's.

    `discrepancy`: see `bough.defaults.discrepancy`; None where the candidate failed, for the reason in `failure`.
    """

    importance: str
    allocation: str
    discrepancy: float | None
    failure: str = ""

    def __str__(self) -> str:
        found = f"failed ({self.failure})" if self.discrepancy is None else f"{self.discrepancy:.3g}"
        return f"{self.importance} with {self.allocation}: {found}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What `prune` chose where the user left it open.

    Attributes:
        importance: the criterion that scored the units.
        allocation: how the budget was met.
        data: what the model was scored and refitted on; "" without data.
        refit: whether the cut model was refitted.
        trials: the candidates that were compared; empty where there was only one.
        notes: what was not done, and why; what real data would bring.
    """

    importance: str
    allocation: str
    data: str = ""
    refit: bool = False
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        used = f", on {self.data}" if self.data else ""
        lines = [
            f"units chosen by {self.importance}, allocation {self.allocation}; refit: {'yes' if self.refit else 'no'}{used}"
        ]
        if len(self.trials) > 1:
            lines.append(f"best of {len(self.trials)} by how little the outputs differ: {'; '.join(map(str, self.trials))}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False, slots=True)
class Chosen:
    """The candidate that won, with its scores and plan, and the trials that it won."""

    candidate: Candidate
    scores: Scores
    options: Options
    plan: Plan
    trials: tuple[Trial, ...]


def choose(
    graph: Graph, budget: Budget, options: Options, found: Sequence[Candidate], sample: Sample | None, *, refit: bool
) -> Chosen:
    """Return the candidate of `found` whose cut model's outputs differ the least from the dense model's.

    Each candidate is scored and planned, and its cut model is refitted on `sample.fit` (if `refit`) and compared with the
    dense model on `sample.judge`. A single candidate is not tried, and neither are plans that `rebuild` carries out, since
    an exported program takes inputs of the example's shapes only: of these the first candidate is taken.

    Raises:
        BudgetError: the budget cannot be reached.
        PlanError, TraceError: every candidate failed; the first one's error.
    """
    trials: list[Trial] = []
    best: tuple[float, Chosen] | None = None
    errors: list[PlanError | TraceError] = []
    scored: dict[str | int, Scores] = {}
    judged = sample is not None and len(found) > 1 and options.on_conflict != "rebuild"
    expected = outputs_on(graph, graph.model, sample.judge) if sample is not None and judged else []
    for candidate in found:
        how = replace(options, allocation=candidate.allocation)
        try:
            criterion = candidate.importance
            key = criterion if isinstance(criterion, str) else id(criterion)
            if key not in scored:
                scored[key] = score(graph, criterion, sample.data if sample else None)
            scores = scored[key]
            plan = planned(graph, scores, budget, how)
            if sample is None or not judged:
                return Chosen(candidate, scores, how, plan, ())
            apart = discrepancy(expected, _outputs(graph, plan, sample, refit))
        except BudgetError:
            raise
        except (PlanError, TraceError) as error:
            errors.append(error)
            trials.append(Trial(*candidate.names, None, str(error)))
            continue
        trials.append(Trial(*candidate.names, apart))
        if best is None or apart < best[0]:
            best = (apart, Chosen(candidate, scores, how, plan, ()))
    if best is None:
        raise errors[0]
    return replace(best[1], trials=tuple(trials))


def _outputs(graph: Graph, plan: Plan, sample: Sample, refit: bool) -> list[list[Any]]:
    """Return what the model that `plan` cuts gives on `sample.judge`, once it is refitted on `sample.fit`."""
    small = cut(graph.model, plan)
    if refit:
        with suppress(PlanError):  # nothing can be refitted: `prune` says so of the candidate that wins
            refit_(graph.model, small, plan, sample.fit, sites=_SITES, example_inputs=graph.calls)
    return outputs_on(graph, small, sample.judge)
