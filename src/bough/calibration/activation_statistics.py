"""Per-index statistics of the inputs of consumers: mean, mean square, mean magnitude, share above zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration.consumer_inputs import InputAxis, consumer_inputs
from bough.calibration.data import Data
from bough.calibration.passes import tapped_pass
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap
from bough.graph import Graph, OpRecord


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """Statistics of one input axis, all float64 [size of the axis], over samples and all other dims.

    Attributes:
        mean, square, magnitude: E[x], E[x^2], E|x|.
        positive: share of values above zero.
        weight: norm of the weights that multiply each index; None if it was not asked for or no weight does.
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    positive: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None

    @property
    def variance(self) -> NDArray[np.float64]:
        """E[x^2] - E[x]^2, not negative."""
        return np.maximum(self.square - self.mean**2, 0.0)


def activation_statistics(
    graph: Graph, data: Data, norm: Callable[[Tensor], Tensor] | None = None, title: str = "activations"
) -> dict[InputAxis, ActivationStatistics]:
    """Return the statistics of every observed input axis of every group, from one pass over the data.

    Args:
        graph: of the model.
        data: calibration data.
        norm: maps the weights of an axis [size of the axis, other sizes] to one number per index.
        title: of the pass.

    Raises:
        PlanError: as `Data.stream`, or no activation has the units of a group.
    """
    wanted = list(dict.fromkeys(axis for axes in consumer_inputs(graph).values() for axis in axes))
    sums = Sums()

    def tap(axis: InputAxis) -> Tap:
        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            _accumulate(sums, axis.key, axis.rows(tensors))
            if norm is not None and axis.weight is not None and f"{axis.key} weight" not in sums:
                sums.keep(f"{axis.key} weight", norm(axis.weight_rows(tensors)))

        return Tap(axis.op, read)

    tapped_pass(graph, data, [tap(axis) for axis in wanted], sums, title)
    return {axis: _normalized(sums, axis.key) for axis in wanted if f"{axis.key} count" in sums}


def _accumulate(sums: Sums, key: str, x: Tensor) -> None:
    """Add the rows `x` [size of the axis, values] of one batch to the sums of an axis."""
    x = x.abs() if x.is_complex() else x if x.is_floating_point() else x.double()
    sums.plus(f"{key} count", x.shape[1])
    sums.plus(f"{key} mean", x.sum(1, dtype=torch.float64))
    sums.plus(f"{key} square", torch.linalg.vector_norm(x, 2, 1, dtype=torch.float64).square())
    sums.plus(f"{key} magnitude", torch.linalg.vector_norm(x, 1, 1, dtype=torch.float64))
    sums.plus(f"{key} positive", (x > 0).sum(1))


def _normalized(sums: Sums, key: str) -> ActivationStatistics:
    """Return the statistics of an axis from its sums."""

    def mean(name: str) -> NDArray[np.float64]:
        count = sums[f"{key} count"].clamp_min(1)  # an expert that no token is routed to
        return (sums[f"{key} {name}"].cpu() / count).numpy()  # type: ignore[no-any-return]

    weight = sums[f"{key} weight"].cpu().numpy() if f"{key} weight" in sums else None
    return ActivationStatistics(mean("mean"), mean("square"), mean("magnitude"), mean("positive"), weight)
