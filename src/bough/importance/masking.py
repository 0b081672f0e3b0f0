"""Criteria by ablation: units are set to zero at the inputs of their consumers, and the loss is measured.

These need no approximation, and are the slowest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import (
    Data,
    InputAxis,
    Loss,
    Reader,
    Sums,
    Tap,
    batch_size,
    consumer_inputs,
    preserve_state,
    tapped,
)  # fmt: skip
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.loss_criterion import LossCriterion
from bough.importance.protocols import UnitScores
from bough.spaces import unit_positions

Units = Sequence[int] | NDArray[np.int64]

LossIncrease = Callable[[Units], float]
"""Units of a group -> increase of the loss on a batch if these are removed."""


@dataclass(frozen=True, slots=True)
class MaskedLoss(LossCriterion):
    """Increase of the loss without the unit: I_u = L(without u) - L, the mean over all samples (ablation).

    Takes one forward pass per batch and unit, and one more per batch.

    Attributes:
        loss: mean over a batch.
        signed: whether the sign is kept; False takes the magnitude.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: from its call: the loss is no single number, or as `Data.stream`.
    """

    signed: bool = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""

        def increases(group: Group, increase: LossIncrease) -> NDArray[np.float64]:
            return np.array([increase([unit]) for unit in range(group.size)])

        scores = _mean_over_batches(graph, self.loss, data, "MaskedLoss", increases)
        return scores if self.signed else {n: np.abs(v) for n, v in scores.items()}


@dataclass(frozen=True, slots=True)
class Shapley(LossCriterion):
    """Sampled Shapley values: I_u = mean over random orders of L(units up to u removed) - L(units before u removed).

    The values of a group add up to the increase of the loss if the whole group is removed. Takes `permutations` forward passes
    per batch and unit: for small groups.

    Source: Ancona et al., 2020; TorchPruner's Shapley.

    Attributes:
        loss: mean over a batch.
        permutations: number of random orders per group, the same for all batches.
        seed: of the orders.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: `permutations` is below 1; from its call, as `MaskedLoss`.
    """

    permutations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        LossCriterion.__post_init__(self)
        if self.permutations < 1:
            raise PlanError(f"Shapley(permutations={self.permutations}): there must be at least one")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        orders = {g.name: self.orders(g.size, i) for i, g in enumerate(graph.groups)}

        def values(group: Group, increase: LossIncrease) -> NDArray[np.float64]:
            total = np.zeros(group.size)
            for order in orders[group.name]:
                cumulative = [0.0, *(increase(order[: i + 1]) for i in range(group.size))]
                total[order] += np.diff(cumulative) / self.permutations
            return total

        return _mean_over_batches(graph, self.loss, data, f"Shapley {self.permutations} {self.seed}", values)

    def orders(self, size: int, group: int) -> list[NDArray[np.int64]]:
        """Return the random orders of the `size` units of group number `group`."""
        generator = np.random.default_rng((self.seed, group))
        return [generator.permutation(size) for _ in range(self.permutations)]


def _mean_over_batches(
    graph: Graph, loss: Loss, data: Data, title: str, measure: Callable[[Group, LossIncrease], NDArray[np.float64]]
) -> UnitScores:
    """Return the mean over samples of what `measure` returns for the units of a group on each batch."""
    sums, loss = Sums(), data.loss(graph, loss)
    masks = [_Mask(graph, g, axes) for g, axes in zip(graph.groups, consumer_inputs(graph).values(), strict=True)]
    with torch.no_grad(), preserve_state(graph.model, graph.written):
        for batch in data.stream(graph, sums, title):
            unmasked = _as_number(loss(graph.model, batch))
            for mask in masks:
                with tapped(graph, mask.taps):
                    values = measure(mask.group, mask.loss_increase(partial(loss, graph.model, batch), unmasked))
                sums.plus(mask.group.name, torch.from_numpy(values) * batch_size(batch))
    return {g.name: sums[g.name].numpy() / sums.samples for g in graph.groups}


class _Mask:
    """Sets units of a group to zero at the inputs of all consumers."""

    def __init__(self, graph: Graph, group: Group, axes: Sequence[InputAxis]) -> None:
        self.group = group
        self.taps = [Tap(axis.op, self._zeroing(axis, unit_positions(axis.space(graph), group.atom))) for axis in axes]
        self._removed: Units = []

    def _zeroing(self, axis: InputAxis, index: NDArray[np.int64]) -> Reader:
        """Return a reader that sets the removed units to zero in an input."""

        def set_to_zero(op: OpRecord, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            x = tensors[axis.argument]
            removed = torch.from_numpy(index[self._removed].reshape(-1)).to(x.device)
            return [x.index_fill(axis.dim, removed, 0) if i == axis.argument else t for i, t in enumerate(tensors)]

        return set_to_zero

    def loss_increase(self, loss: Callable[[], Tensor], unmasked: float) -> LossIncrease:
        """Return the function from removed units to the increase of the loss over `unmasked`."""

        def increase(units: Units) -> float:
            self._removed = units
            return float(loss()) - unmasked

        return increase


def _as_number(value: object) -> float:
    """Return a loss as a number, or raise PlanError."""
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise PlanError(f"the loss is {what}: give (model, batch) -> the mean loss, one number")
