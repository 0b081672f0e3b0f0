"""Criteria from what units do on data: statistics of the activations that their consumers read, and gradients of them.

An activation is what a consumer reads: the input of the linear layer, convolution or product that sums over the units,
so after the nonlinearity (see `readings`). Units with several positions (heads) and groups with several consumers (a
residual stream) take the mean over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.data import Data, Loss, Sums, batch_size
from bough.importance.gradient import gradients
from bough.importance.readings import Reading, readings, seen
from bough.importance.reduce import positions, unit_means
from bough.importance.score import UnitScores
from bough.tracing.taps import Tap, tapped, undisturbed


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one axis that is read: for each index the mean, mean square, mean magnitude, and share above zero; and, where
    it was asked for and there is one, a norm of the weights that read the index."""

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    positive: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None

    @property
    def variance(self) -> NDArray[np.float64]:
        return np.maximum(self.square - self.mean**2, 0.0)


def statistics(
    graph: Graph, data: Data, norm: Callable[[Tensor], Tensor] | None = None, title: str = "activations"
) -> dict[Reading, Statistics]:
    """The statistics of every reading of every group that occurs: one pass, a few numbers an index.

    `norm` maps the weights that read an axis [size of the axis, all else] to a number for each index.
    """
    wanted = list(dict.fromkeys(r for rs in readings(graph).values() for r in rs))
    sums = Sums()

    def tap(reading: Reading) -> Tap:
        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            _measure(sums, reading.key, reading.rows(tensors))
            if norm is not None and reading.weight is not None and f"{reading.key} weight" not in sums:
                sums.plus(f"{reading.key} weight", norm(reading.weight_rows(tensors)))

        return Tap(reading.op, read)

    with torch.no_grad(), undisturbed(graph.model), tapped(graph, [tap(r) for r in wanted]):
        for batch in data.stream(graph, sums, title):
            data.run(graph, batch)
    return {r: _mean(sums, r.key) for r in wanted if f"{r.key} count" in sums}


def _measure(sums: Sums, key: str, x: Tensor) -> None:
    x = x.abs() if x.is_complex() else x if x.is_floating_point() else x.double()
    sums.plus(f"{key} count", x.shape[1])
    sums.plus(f"{key} mean", x.sum(1, dtype=torch.float64))
    sums.plus(f"{key} square", torch.linalg.vector_norm(x, 2, 1, dtype=torch.float64).square())
    sums.plus(f"{key} magnitude", torch.linalg.vector_norm(x, 1, 1, dtype=torch.float64))
    sums.plus(f"{key} positive", (x > 0).sum(1))


def _mean(sums: Sums, key: str) -> Statistics:
    def mean(what: str) -> NDArray[np.float64]:
        return (sums[f"{key} {what}"].cpu() / sums[f"{key} count"]).numpy()  # type: ignore[no-any-return]

    weight = sums[f"{key} weight"].cpu().numpy() if f"{key} weight" in sums else None
    return Statistics(mean("mean"), mean("square"), mean("magnitude"), mean("positive"), weight)


def averaged(graph: Graph, values: Mapping[Reading, NDArray[np.float64]]) -> UnitScores:
    """Per unit the mean over its positions and over the group's readings."""
    means = {}
    for group, found in zip(graph.groups, readings(graph).values(), strict=True):
        there = seen(group.name, found, values)
        means[group.name] = np.mean([unit_means(r.space(graph), group.atom, values[r]) for r in there], axis=0)
    return means


@dataclass(frozen=True, slots=True)
class ActivationMean:
    """Mean magnitude of the activation: I_u = E|a_u| (Molchanov et al., 2017; NNI's ActivationMeanRank)."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.magnitude for r, s in statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class APoZ:
    """Average percentage of zeros, as what remains: I_u = 1 - APoZ_u = the share of activations above zero (Hu et al.,
    2016; NNI's ActivationAPoZRank). Meant for ReLU; of other nonlinearities, values at or below zero count as zeros."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.positive for r, s in statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class ActivationVariance:
    """Variance of the activation: I_u = Var(a_u) (VBP): a unit that is nearly constant is replaced by its mean in the
    consumers' biases (see refit)."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.variance for r, s in statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class HRank:
    """Mean rank of the feature map: I_u = E[rank(a_u)] (Lin et al., 2020).

    The map of a unit in one sample is a matrix of the second axis that is left (rows of an image, tokens) by all others and
    the unit's positions; a head's is tokens by dims. Slow: one singular value decomposition per unit and sample.
    """

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        sums = Sums()
        found = readings(graph)

        def tap(group: Group, reading: Reading) -> Tap:
            index = positions(reading.space(graph), group.atom)

            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                sums.plus(f"{group.name} {reading.key}", _ranks(tensors[reading.argument].movedim(reading.dim, -1), index))

            return Tap(reading.op, read)

        taps = [tap(g, r) for g in graph.groups for r in found[g.name]]
        with torch.no_grad(), undisturbed(graph.model), tapped(graph, taps):
            for batch in data.stream(graph, sums, "HRank"):
                data.run(graph, batch)
        means = {}
        for name, rs in found.items():
            ranks = {r: sums[key] for r in rs if (key := f"{name} {r.key}") in sums}
            means[name] = np.mean([ranks[r].cpu().numpy() for r in seen(name, rs, ranks)], axis=0) / sums.samples
        return means


def _ranks(x: Tensor, index: NDArray[np.int64]) -> Tensor:
    """[units]: the sum of ranks over samples, of x with its read axis last."""
    x = x if x.dim() > 1 else x[None]
    x = x[..., torch.from_numpy(index).to(x.device)]  # [samples, ..., units, positions]
    x = x.movedim(-2, 1)  # [samples, units, ..., positions]
    rows = x.shape[2] if x.dim() > 3 else 1
    if not x.isfinite().all():
        raise PlanError("HRank: an activation is not finite on this data")
    return torch.linalg.matrix_rank(x.double().reshape(*x.shape[:2], rows, -1)).double().sum(0)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Mean magnitude of the loss's gradient for the activation: I_u = mean over samples of sum over positions of |dL_n/da_u|
    (Mittal et al., 2018; TorchPruner's Sensitivity). Groups with several consumers take the mean over them.

    `loss` is the mean over a batch, whose gradients are multiplied by its size to be those of samples."""

    loss: Loss
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        loss = data.loss(graph, self.loss)
        found = readings(graph)
        wanted = list(dict.fromkeys(r for rs in found.values() for r in rs))
        sums, size = Sums(), [0]

        def hooked(reading: Reading) -> Tap:
            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                if tensors[reading.argument].requires_grad:
                    tensors[reading.argument].register_hook(lambda g: add(reading, g))

            return Tap(reading.op, read)

        def add(reading: Reading, gradient: Tensor | None) -> None:
            if gradient is None:
                return
            others = gradient.detach().abs().movedim(reading.dim, 0).flatten(1)
            sums.plus(reading.key, others.sum(1, dtype=torch.float64) * size[0])

        names = [n for n, s in graph.states.items() if s.parameter and graph.tensor(n).is_floating_point()]
        with undisturbed(graph.model), tapped(graph, [hooked(r) for r in wanted]):
            for batch in data.stream(graph, sums, "Sensitivity"):
                size[0] = batch_size(batch)
                gradients(graph, loss, batch, names)
        zeros = {r: np.zeros(r.space(graph).size) for r in wanted}
        values = {r: sums[r.key].cpu().numpy() / sums.samples if r.key in sums else zeros[r] for r in wanted}
        return averaged(graph, values)
