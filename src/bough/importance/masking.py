"""Criteria that try it: units are set to zero wherever their consumers read them, and the loss is measured. The most honest,
and the slowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.data import Data, Loss, Sums, batch_size
from bough.importance.readings import Reading, readings
from bough.importance.reduce import positions
from bough.importance.score import UnitScores
from bough.tracing.taps import Reader, Tap, tapped, undisturbed


@dataclass(frozen=True, slots=True)
class MaskedLoss:
    """Loss sensitivity: I_u = L(without unit u) - L, the mean over all samples (ablation; brute-force oracle of pruning).

    `signed=False` takes the magnitude. As many forward passes a batch as there are units, and one.
    """

    loss: Loss
    signed: bool = True
    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        def each(group: Group, lost: Callable[[], float], remove: Callable[[int], None], restore: Callable[[], None]) -> Any:
            gained = np.zeros(group.size)
            for unit in range(group.size):
                remove(unit)
                gained[unit] = lost()
                restore()
            return gained

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
        if self.permutations < 1:
            raise PlanError(f"Shapley(permutations={self.permutations}): there must be at least one")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        orders = {g.name: self.orders(g.size, i) for i, g in enumerate(graph.groups)}

        def each(group: Group, lost: Callable[[], float], remove: Callable[[int], None], restore: Callable[[], None]) -> Any:
            gained = np.zeros(group.size)
            for order in orders[group.name]:
                before = 0.0
                for unit in order:
                    remove(int(unit))
                    after = lost()
                    gained[unit] += (after - before) / self.permutations
                    before = after
                restore()
            return gained

        return _tried(graph, self.loss, data, f"Shapley {self.permutations} {self.seed}", each)

    def orders(self, size: int, group: int) -> list[NDArray[np.int64]]:
        """The orders in which the units of group number `group` leave."""
        generator = np.random.default_rng((self.seed, group))
        return [generator.permutation(size) for _ in range(self.permutations)]


Trial = Callable[[Group, Callable[[], float], Callable[[int], None], Callable[[], None]], Any]
"""(group, the loss gained so far, remove a unit, put all back) -> what each unit gains [units], on one batch."""


def _tried(graph: Graph, loss: Loss, data: Data, title: str, each: Trial) -> UnitScores:
    sums = Sums()
    masks = [_Mask(graph, g, rs) for g, rs in zip(graph.groups, readings(graph).values(), strict=True)]
    with torch.no_grad(), undisturbed(graph.model):
        for batch in data.stream(graph, sums, title):

            def measured(batch: Any = batch) -> float:
                return float(loss(graph.model, batch))

            whole = measured()

            def gained(measured: Callable[[], float] = measured, whole: float = whole) -> float:
                return measured() - whole

            for mask in masks:
                with tapped(graph, mask.taps):
                    values = each(mask.group, gained, mask.remove, mask.restore)
                sums.plus(mask.group.name, torch.from_numpy(values) * batch_size(batch))
    return {g.name: sums[g.name].numpy() / sums.samples for g in graph.groups}


class _Mask:
    """Sets units to zero wherever they are read."""

    def __init__(self, graph: Graph, group: Group, found: Sequence[Reading]) -> None:
        self.group = group
        self.gone: list[int] = []
        self.taps = [Tap(r.op, self._zeroing(r, positions(r.space(graph), group.atom))) for r in found]

    def _zeroing(self, reading: Reading, index: NDArray[np.int64]) -> Reader:
        def zeroed(op: OpRecord, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            x = tensors[reading.argument]
            gone = torch.from_numpy(index[self.gone].reshape(-1)).to(x.device)
            return [x.index_fill(reading.dim, gone, 0) if i == reading.argument else t for i, t in enumerate(tensors)]

        return zeroed

    def remove(self, unit: int) -> None:
        self.gone.append(unit)

    def restore(self) -> None:
        self.gone.clear()
