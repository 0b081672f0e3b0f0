"""`score`: from a criterion to one number per unit of every group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_arguments
from bough.calibration import Data, as_data
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.check import checked_scores
from bough.importance.finite import check_weights

UnitScores = dict[str, NDArray[np.float64]]


class Criterion(Protocol):
    """Anything that scores the groups of a graph by its weights."""

    def __call__(self, graph: Graph) -> UnitScores:
        """One float64 array [units] per group name."""


class DataCriterion(Protocol):
    """Anything that scores the groups of a graph by what they do on data. `needs_data` is True.

    Iterate over the data for its batches, and run the model on one by `data.run(graph, batch)`: see docs/extending.md.
    """

    needs_data: bool

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """One float64 array [units] per group name."""


def score(graph: Graph, criterion: str | Criterion | DataCriterion, data: Data | Iterable[Any] | None = None) -> UnitScores:
    """The criterion's number for each unit of each group: {group name: float64 array [units]}; low ones go first.

    Where units may differ for each unit of another group (`graph.ragged`), criteria that add up over members also give
    {`Ragged.scores`: float64 array [units of the other, units]}, which `plan(..., ragged=True)` reads.

    Args:
        graph: of the model, which stays as it is.
        criterion: one of `bough.importance`, by name where it needs no loss ("wanda", "obs(relative=True)"), or any function
            of the graph (and, with `needs_data`, of the data).
        data: batches, or `bough.importance.Data` to say how to go through them; criteria on weights do without.

    Raises:
        PlanError: an unknown name, the criterion needs data and there is none, the data does not fit the model, or the
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
    criterion = called(criterion)
    sums = getattr(criterion, "parameters_summed", None)  # of NaN, `per_unit` tells where it meets it
    check_weights(graph, frozenset() if sums is None else sums(graph))
    if not getattr(criterion, "needs_data", False):
        return checked_scores(graph, criterion(graph), criterion)  # type: ignore[call-arg]
    if data is None:
        raise PlanError(f"{type(criterion).__name__} needs data: bough.score(graph, {type(criterion).__name__}(...), batches)")
    return checked_scores(graph, criterion(graph, as_data(data)), criterion)  # type: ignore[call-arg]


def called(criterion: str | Criterion | DataCriterion) -> Criterion | DataCriterion:
    """The criterion of a name; others as they are."""
    if not isinstance(criterion, str):
        return criterion
    from bough.importance.registry import criterion as made  # which imports the criteria, and they this module

    found: Criterion | DataCriterion = made(criterion)
    return found
