"""`score`: apply a criterion to a graph."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, require_equal_in_processes, unreached_groups
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.protocols import Criterion, DataCriterion, UnitScores
from bough.importance.registry import resolve_criterion
from bough.importance.score_checks import check_scores
from bough.importance.weight_checks import check_weights
from bough.tracing import with_frozen


def score(graph: Graph, criterion: str | Criterion | DataCriterion, data: Data | Iterable[Any] | None = None) -> UnitScores:
    """Return a criterion's score for each unit of each group: {group name: float64 [units]}; low scores are removed first.

    If units may differ for each unit of another group (`graph.ragged`), criteria that sum over members also return
    {`Ragged.scores`: float64 [units of the other group, units]}, which `plan(..., ragged=True)` reads.

    Args:
        graph: of the model, which stays as it is.
        criterion: one of `bough.importance`, by name if it needs no loss ("wanda", "obs(relative=True)"), or any function
            of the graph (and, with the attribute `needs_data`, of the data).
        data: batches, or `bough.importance.Data` with options; not needed by criteria on weights.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the name is unknown, the criterion needs data and there is none, the data does not fit the model, or the
            criterion returns anything but finite scores of all groups.
        TraceError: on this data the model takes another path than the traced one.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> def loss(model, batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)]
        >>> score(graph, bough.importance.Taylor(loss), batches)["0"].shape
        (8,)
    """
    check_arguments(score, locals())
    criterion = resolve_criterion(criterion)
    parameters_summed = getattr(criterion, "parameters_summed", None)  # `per_unit` detects NaN in these
    check_weights(graph, frozenset() if parameters_summed is None else parameters_summed(graph))
    if not getattr(criterion, "needs_data", False):
        return check_scores(graph, criterion(graph), criterion)  # type: ignore[call-arg]
    if data is None:
        raise PlanError(f"{type(criterion).__name__} needs data: bough.score(graph, {type(criterion).__name__}(...), batches)")
    given = as_data(data)
    scores = check_scores(graph, criterion(graph, given), criterion)  # type: ignore[call-arg]
    if given.distributed:
        digest = sha256(b"".join(name.encode() + scores[name].tobytes() for name in sorted(scores))).hexdigest()
        require_equal_in_processes(
            digest,
            f"the scores of {type(criterion).__name__}: add sums over processes, as Data.stream does, or use one process",
        )
    return scores


def with_data_reached(graph: Graph, criteria: Iterable[str | Criterion | DataCriterion]) -> Graph:
    """Return the graph with those groups frozen that data does not reach, if one of `criteria` needs data.

    Data is passed through the first of several calls; the units that only another call reads can not be scored by it.
    """
    needs_data = any(getattr(resolve_criterion(c), "needs_data", False) for c in criteria)
    return with_frozen(graph, unreached_groups(graph)) if needs_data else graph
