"""`score`: from a criterion to one number per unit of every group."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bough.graph import Graph

UnitScores = dict[str, NDArray[np.float64]]


class Criterion(Protocol):
    """Anything that scores the groups of a graph."""

    def __call__(self, graph: Graph) -> UnitScores:
        """One float64 array [units] per group name."""


def score(graph: Graph, criterion: Criterion) -> UnitScores:
    """The criterion's number for each unit of each group: {group name: float64 array [units]}.

    Where units may differ for each unit of another group (`graph.ragged`), built-in criteria also give {`Ragged.scores`:
    float64 array [units of the other, units]}, which `plan(..., ragged=True)` reads.
    """
    return criterion(graph)
