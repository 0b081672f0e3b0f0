"""Criteria from what units do on data: statistics of the activations that their consumers read, and gradients of them.

An activation is what a consumer reads: the input of the linear layer, convolution or product that sums over the units,
so after the nonlinearity (see `readings`). Units with several positions (heads) and groups with several consumers (a
residual stream) take the mean over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.calibration import (
    Data,
    InputAxis,
    Loss,
    Sums,
    Tap,
    activation_statistics,
    batch_size,
    consumer_inputs,
    loss_gradients,
    observed_axes,
    preserve_state,
    tapped,
)
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.score import UnitScores
from bough.spaces import unit_means, unit_positions


def averaged(graph: Graph, values: Mapping[InputAxis, NDArray[np.float64]]) -> UnitScores:
    """Per unit the mean over its positions and over the group's readings."""
    means = {}
    for group, found in zip(graph.groups, consumer_inputs(graph).values(), strict=True):
        there = observed_axes(group.name, found, values)
        means[group.name] = np.mean([unit_means(r.space(graph), group.atom, values[r]) for r in there], axis=0)
    return means


@dataclass(frozen=True, slots=True)
class ActivationMean:
    """Mean magnitude of the activation: I_u = E|a_u| (Molchanov et al., 2017; NNI's ActivationMeanRank)."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.magnitude for r, s in activation_statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class APoZ:
    """Average percentage of zeros, as what remains: I_u = 1 - APoZ_u = the share of activations above zero (Hu et al.,
    2016; NNI's ActivationAPoZRank). Meant for ReLU; of other nonlinearities, values at or below zero count as zeros."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.positive for r, s in activation_statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class ActivationVariance:
    """Variance of the activation: I_u = Var(a_u) (VBP): a unit that is nearly constant is replaced by its mean in the
    consumers' biases (see refit)."""

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return averaged(graph, {r: s.variance for r, s in activation_statistics(graph, data).items()})


@dataclass(frozen=True, slots=True)
class HRank:
    """Mean rank of the feature map: I_u = E[rank(a_u)] (Lin et al., 2020).

    The map of a unit in one sample is a matrix of the second axis that is left (rows of an image, tokens) by all others and
    the unit's positions; a head's is tokens by dims. Slow: one singular value decomposition per unit and sample.
    """

    needs_data: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        sums = Sums()
        found = consumer_inputs(graph)

        def tap(group: Group, reading: InputAxis) -> Tap:
            index = unit_positions(reading.space(graph), group.atom)

            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                sums.plus(f"{group.name} {reading.key}", _ranks(tensors[reading.argument].movedim(reading.dim, -1), index))

            return Tap(reading.op, read)

        taps = [tap(g, r) for g in graph.groups for r in found[g.name]]
        with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps):
            for batch in data.stream(graph, sums, "HRank"):
                data.run(graph, batch)
        means = {}
        for name, rs in found.items():
            ranks = {r: sums[key] for r in rs if (key := f"{name} {r.key}") in sums}
            means[name] = np.mean([ranks[r].cpu().numpy() for r in observed_axes(name, rs, ranks)], axis=0) / sums.samples
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
        found = consumer_inputs(graph)
        wanted = list(dict.fromkeys(r for rs in found.values() for r in rs))
        sums, size = Sums(), [0]

        def hooked(reading: InputAxis) -> Tap:
            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                if tensors[reading.argument].requires_grad:
                    tensors[reading.argument].register_hook(lambda g: add(reading, g))

            return Tap(reading.op, read)

        def add(reading: InputAxis, gradient: Tensor | None) -> None:
            if gradient is None:
                return
            others = gradient.detach().abs().movedim(reading.dim, 0).flatten(1)
            sums.plus(reading.key, others.sum(1, dtype=torch.float64) * size[0])

        names = [n for n, s in graph.states.items() if s.parameter and graph.tensor(n).is_floating_point()]
        with preserve_state(graph.model, graph.written), tapped(graph, [hooked(r) for r in wanted]):
            for batch in data.stream(graph, sums, "Sensitivity"):
                size[0] = batch_size(batch)
                loss_gradients(graph, loss, batch, names)
        zeros = {r: np.zeros(r.space(graph).size) for r in wanted}
        values = {r: sums[r.key].cpu().numpy() / sums.samples if r.key in sums else zeros[r] for r in wanted}
        return averaged(graph, values)
