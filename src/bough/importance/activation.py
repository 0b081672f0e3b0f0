"""Criteria from activations: statistics of the inputs of a group's consumers.

The activation of a unit is observed where a consumer reads it: at the input of the linear layer, convolution or product that
sums over the units, hence after the nonlinearity (see `bough.calibration.consumer_inputs`). Scores are averaged over the
positions of a unit (the dims of a head) and over the consumers of a group (of a residual stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import Data, InputAxis, Sums, Tap, activation_statistics, consumer_inputs, observed_axes, tapped_pass
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.protocols import UnitScores
from bough.importance.reduce import mean_over_axes
from bough.spaces import unit_positions


class _MeanStatistic:
    """The mean of a statistic of the activation over a unit's positions and a group's consumers."""

    __slots__ = ()
    needs_data: ClassVar[bool] = True
    statistic: ClassVar[str]  # attribute of `ActivationStatistics`

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        statistics = activation_statistics(graph, data)
        return mean_over_axes(graph, {axis: getattr(s, self.statistic) for axis, s in statistics.items()})


@dataclass(frozen=True, slots=True)
class ActivationMean(_MeanStatistic):
    """Mean magnitude of the activation: I_u = E|a_u|.

    Source: Molchanov et al., 2017; NNI's ActivationMeanRank.
    """

    statistic: ClassVar[str] = "magnitude"


@dataclass(frozen=True, slots=True)
class APoZ(_MeanStatistic):
    """Average percentage of zeros, counted as what remains: I_u = 1 - APoZ_u, the share of activations above zero.

    Meant for ReLU; with other nonlinearities, values at or below zero count as zeros.

    Source: Hu et al., 2016; NNI's ActivationAPoZRank.
    """

    statistic: ClassVar[str] = "positive"


@dataclass(frozen=True, slots=True)
class ActivationVariance(_MeanStatistic):
    """Variance of the activation: I_u = Var(a_u). A unit that is nearly constant can be replaced by its mean in biases.

    Source: VBP (variance-based pruning); use it with a refit, which moves the means into the consumers' biases.
    """

    statistic: ClassVar[str] = "variance"


@dataclass(frozen=True, slots=True)
class HRank:
    """Mean rank of the feature map: I_u = E[rank(a_u)].

    The map of a unit in one sample is a matrix: its rows are the second remaining axis (rows of an image, tokens), its columns
    all others and the unit's positions; for a head, tokens by dims. Slow: one singular value decomposition per unit and
    sample.

    Source: Lin et al., 2020.

    Raises:
        PlanError: from its call: an activation is not finite.
    """

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        sums = Sums()
        axes_by_group = consumer_inputs(graph)

        def tap(group: Group, axis: InputAxis) -> Tap:
            index = unit_positions(axis.space(graph), group.atom)

            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                sums.plus(f"{group.name} {axis.key}", _rank_sums(tensors[axis.argument].movedim(axis.dim, -1), index))

            return Tap(axis.op, read)

        taps = [tap(g, axis) for g in graph.groups for axis in axes_by_group[g.name]]
        tapped_pass(graph, data, taps, sums, "HRank")
        means = {}
        for name, axes in axes_by_group.items():
            ranks = {axis: sums[key] for axis in axes if (key := f"{name} {axis.key}") in sums}
            observed = [ranks[axis].cpu().numpy() for axis in observed_axes(name, axes, ranks)]
            means[name] = np.mean(observed, axis=0) / sums.samples
        return means


def _rank_sums(x: Tensor, index: NDArray[np.int64]) -> Tensor:
    """Return the sum over samples of the rank of each unit's feature map: [units].

    Args:
        x: activation [samples, ..., size of the axis].
        index: [units, positions], positions of each unit along the last axis.
    """
    x = x if x.dim() > 1 else x[None]
    x = x[..., torch.from_numpy(index).to(x.device)]  # [samples, ..., units, positions]
    x = x.movedim(-2, 1)  # [samples, units, ..., positions]
    rows = x.shape[2] if x.dim() > 3 else 1
    if not x.isfinite().all():
        raise PlanError("HRank: an activation is not finite on this data")
    return torch.linalg.matrix_rank(x.double().reshape(*x.shape[:2], rows, -1)).double().sum(0)
