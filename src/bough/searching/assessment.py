"""What is known of a candidate's model besides the user's metrics: costs as measured, and how far its outputs are off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from bough.calibration import Data, batch_size
from bough.cost import Cost
from bough.defaults.discrepancy import discrepancy, outputs_on
from bough.errors import SearchError
from bough.exporting import footprint
from bough.graph import Graph, shown
from bough.planning import Budget
from bough.targeting import Limits

_SAMPLES = 256  # on which outputs are compared


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Costs that are measured of a candidate's model, where the closed form only predicts them, and the bounds on them.

    Attributes:
        measure: model -> {field of `Cost`: value}.
        limits: {field of `Cost`: largest value that is allowed}.
        dense: {field of `Cost`: value of the dense model}, where that was measured.
    """

    measure: Callable[[nn.Module], Mapping[str, float]]
    limits: Mapping[str, float]
    dense: Mapping[str, float] = field(default_factory=dict)

    def violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return by how much each bound is missed, as a share of the bound; zero or less where it is met."""
        return {f"measured {name} <= {shown(name, limit)}": values[name] / limit - 1 for name, limit in self.limits.items()}


def measured_latency(
    measure: Callable[[nn.Module], float], model: nn.Module, budget: Budget, original: Cost
) -> MeasuredCosts:  # fmt: skip
    """Return the bound on latency as `measure` gives it; a percentage in the budget is of the dense model as measured.

    Raises:
        SearchError: `measure` does not give the seconds of a model.
    """

    def seconds(candidate: nn.Module) -> dict[str, float]:
        value = float(measure(candidate))
        if not 0 < value < math.inf:
            raise SearchError(f"measure(model) gave {value!r}: the seconds of a model are wanted")
        return {"latency": value}

    dense = seconds(model)
    limits = budget.limits(replace(original, latency=dense["latency"]))
    return MeasuredCosts(seconds, {"latency": limits["latency"]}, dense)


def measured_export(graph: Graph, limits: Limits) -> MeasuredCosts:
    """Return the bounds on arena and constants of a candidate's C export, as peak memory and flash."""
    call = graph.calls[0]

    def export_bytes(candidate: nn.Module) -> dict[str, float]:
        found = footprint(candidate, (call.args, call.kwargs))
        return {"peak_memory": found.arena, "flash": found.flash}

    allowed = {"peak_memory": limits.arena, "flash": limits.flash}
    return MeasuredCosts(export_bytes, {name: limit for name, limit in allowed.items() if limit < math.inf})


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
