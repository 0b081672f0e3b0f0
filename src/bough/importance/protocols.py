"""Protocols of criteria: functions that score the units of a graph, from weights alone or from data."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bough.calibration import Data
from bough.graph import Graph

UnitScores = dict[str, NDArray[np.float64]]
"""{group name: float64 [units]}; units with low scores are removed first."""


class Criterion(Protocol):
    """A function that scores the units of a graph's groups by the weights of its model."""

    def __call__(self, graph: Graph) -> UnitScores:
        """Return one float64 array [units] per group name."""


class DataCriterion(Protocol):
    """A function that scores the units of a graph's groups on data.

    Iterate over the data for its batches, and call `data.run(graph, batch)` to run the model on one: see docs/extending.md.
    """

    @property
    def needs_data(self) -> bool:
        """True; an attribute of the class will do."""

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return one float64 array [units] per group name."""
