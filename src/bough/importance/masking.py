"""Criteria that try it: units are set to zero wherever their consumers read them, and the loss is measured. The most honest,
and the slowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.calibration import Data, InputAxis, Loss, Reader, Sums, Tap, batch_size, consumer_inputs, preserve_state, tapped
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.score import UnitScores
from bough.spaces import unit_positions


@dataclass(frozen=True, slots=True)
class MaskedLoss:
    """Loss sensitivity: I_u = L(without unit u) - L, the mean over all samples (ablation; brute-force oracle of pruning).

    `signed=False` takes the magnitude. As many forward passes a batch as there are units, and one.
    """

    loss: Loss
    signed: bool = True
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        def each(group: Group, gained: Gained) -> NDArray[np.float64]:
            return np.array([gained([unit]) for unit in range(group.size)])

        found = _tried(graph, self.loss, data, "MaskedLoss", each)
        return found if self.signed else {n: np.abs(v) for n, v in found.items()}


@dataclass(frozen=True, slots=True)
class Shapley:
    """Sampled Shapley values: I_u = mean over random orders of L(units up to u removed) - L(units before u removed)
    (Ancona et al., 2020; TorchPruner's Shapley).

    The values of a group add up to the loss of removing it whole. `permutations` orders a group, the same for all batches;
    each costs as many forward passes a batch as there are units: for small groups.
    """

    loss: Loss
    permutations: int = 5
    seed: int = 0
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.permutations < 1:
            raise PlanError(f"Shapley(permutations={self.permutations}): there must be at least one")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        orders = {g.name: self.orders(g.size, i) for i, g in enumerate(graph.groups)}

        def each(group: Group, gained: Gained) -> NDArray[np.float64]:
            total = np.zeros(group.size)
            for order in orders[group.name]:
                so_far = [0.0, *(gained(order[: i + 1]) for i in range(group.size))]
                total[order] += np.diff(so_far) / self.permutations
            return total

        return _tried(graph, self.loss, data, f"Shapley {self.permutations} {self.seed}", each)

    def orders(self, size: int, group: int) -> list[NDArray[np.int64]]:
        """The orders in which the units of group number `group` leave."""
        generator = np.random.default_rng((self.seed, group))
        return [generator.permutation(size) for _ in range(self.permutations)]


Gained = Callable[[Sequence[int] | NDArray[np.int64]], float]
"""Units of a group to remove -> what the loss on a batch gains."""


def _tried(
    graph: Graph, loss: Loss, data: Data, title: str, each: Callable[[Group, Gained], NDArray[np.float64]]
) -> UnitScores:
    """The mean over samples of what `each` finds for the units of a group on one batch."""
    sums, loss = Sums(), data.loss(graph, loss)
    masks = [_Mask(graph, g, rs) for g, rs in zip(graph.groups, consumer_inputs(graph).values(), strict=True)]
    with torch.no_grad(), preserve_state(graph.model, graph.written):
        for batch in data.stream(graph, sums, title):
            whole = _one(loss(graph.model, batch))
            for mask in masks:
                with tapped(graph, mask.taps):
                    values = each(mask.group, mask.gained(partial(loss, graph.model, batch), whole))
                sums.plus(mask.group.name, torch.from_numpy(values) * batch_size(batch))
    return {g.name: sums[g.name].numpy() / sums.samples for g in graph.groups}


class _Mask:
    """Sets units to zero wherever they are read."""

    def __init__(self, graph: Graph, group: Group, found: Sequence[InputAxis]) -> None:
        self.group = group
        self.taps = [Tap(r.op, self._zeroing(r, unit_positions(r.space(graph), group.atom))) for r in found]
        self._gone: Sequence[int] | NDArray[np.int64] = []

    def _zeroing(self, reading: InputAxis, index: NDArray[np.int64]) -> Reader:
        def zeroed(op: OpRecord, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            x = tensors[reading.argument]
            gone = torch.from_numpy(index[self._gone].reshape(-1)).to(x.device)
            return [x.index_fill(reading.dim, gone, 0) if i == reading.argument else t for i, t in enumerate(tensors)]

        return zeroed

    def gained(self, loss: Callable[[], Tensor], whole: float) -> Gained:
        def gained(units: Sequence[int] | NDArray[np.int64]) -> float:
            self._gone = units
            return float(loss()) - whole

        return gained


def _one(value: object) -> float:
    """A loss as a number."""
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise PlanError(f"the loss is {what}: give (model, batch) -> the mean loss, one number")
