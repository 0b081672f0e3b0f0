"""What is known of a candidate's model besides the user's metrics: its latency as measured, and how far its outputs are off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from bough.calibration import Data, batch_size
from bough.cost import Cost
from bough.defaults.discrepancy import discrepancy, outputs_on
from bough.graph import Graph
from bough.planning import Budget

_SAMPLES = 256  # on which outputs are compared


@dataclass(frozen=True, slots=True)
class MeasuredLatency:
    """The bound on latency as it is measured.

    Attributes:
        measure: model -> seconds.
        dense: seconds of the dense model.
        limit: largest seconds that are allowed.
    """

    measure: Callable[[nn.Module], float]
    dense: float
    limit: float

    @classmethod
    def of(cls, measure: Callable[[nn.Module], float], model: nn.Module, budget: Budget, original: Cost) -> MeasuredLatency:
        """Measure the dense model, of which a percentage in the budget is a share."""
        dense = float(measure(model))
        return cls(measure, dense, budget.limits(replace(original, latency=dense))["latency"])

    @property
    def bound(self) -> str:
        """The name of the bound among violations."""
        return f"measured latency <= {self.limit:.4g} s"


class Divergence:
    """Measures how far a model's outputs are from the dense model's on unlabelled data (`defaults.discrepancy`).

    Args:
        graph: of the dense model.
        data: batches; the first of them, up to 256 samples, are used.
    """

    def __init__(self, graph: Graph, data: Data) -> None:
        batches, samples = [], 0
        for batch in data.batches:
            batches.append(batch)
            samples += batch_size(batch)
            if samples >= _SAMPLES:
                break
        self._graph, self._data = graph, replace(data, batches=batches)
        self._expected: list[list[Tensor]] = outputs_on(graph, graph.model, self._data)

    def __call__(self, model: nn.Module) -> float:
        """Return the divergence of a model; infinity where its outputs are not finite."""
        return discrepancy(self._expected, outputs_on(self._graph, model, self._data))
