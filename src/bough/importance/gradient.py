"""Criteria from gradients of the loss: the estimated change of the loss if a unit were zero.

Gradients come from the loss's own backward pass in eval mode; `.grad` of the model's parameters stays as it is. A gate m_u = 1
that multiplies a unit has the derivative dL/dm_u = sum of w * dL/dw over the weights that consume the unit, so gates on
activations need no change to the model: their derivatives follow from the gradients of weights, for every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import (
    Data,
    InputAxis,
    Loss,
    Sums,
    Tap,
    batch_size,
    consumer_inputs,
    loss_gradients,
    preserve_state,
    sample_gradients,
    tapped,
)  # fmt: skip
from bough.errors import PlanError
from bough.graph import Graph, Group, OpRecord
from bough.importance.loss_criterion import LossCriterion
from bough.importance.protocols import UnitScores
from bough.importance.reduce import Reduce, elementwise, group_members, mean_over_axes, per_unit
from bough.spaces import unit_positions

_SUM: Reduce = elementwise(lambda w: w)


@dataclass(frozen=True, slots=True)
class Taylor(LossCriterion):
    """First-order Taylor expansion of the loss, from g = dL/dw over all data; sums run over all members of a unit.

    Source: Molchanov et al., 2019; Ma et al., 2023 (LLM-Pruner).

    Attributes:
        loss: mean over a batch.
        form: "element": I_u = sum of |w g| (the default of Torch-Pruning's GroupTaylorImportance), the best of the three in
            `benchmarks/defaults.py`. "group": I_u = sum over members of |sum of w g| (LLM-Pruner's vector form), in which
            products of opposite sign cancel. "square": I_u = sum of (w g)^2 (NNI's TaylorFOWeight).

    Raises:
        ArgumentError: an argument of another type.
        PlanError: an unknown form.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> loss = lambda model, batch: model(batch).square().mean()
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Taylor(loss), [torch.randn(16, 4)])["0"].shape
        (8,)
    """

    form: Literal["element", "group", "square"] = "element"

    def __post_init__(self) -> None:
        LossCriterion.__post_init__(self)
        if self.form not in ("group", "element", "square"):
            raise PlanError(f"Taylor(form={self.form!r}) is unknown: use 'group', 'element' or 'square'")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        names, loss = _float_members(graph), data.loss(graph, self.loss)
        sums = Sums()
        with preserve_state(graph.model, graph.written):
            for batch in data.stream(graph, sums, "Taylor"):
                for name, g in zip(names, loss_gradients(graph, loss, batch, names), strict=True):
                    sums.plus(name, g * batch_size(batch), g.dtype)
        products = {n: graph.tensor(n).detach() * (sums[n] / sums.samples) for n in names}
        if self.form == "group":
            return per_unit(graph, _SUM, inputs=True, tensors=products, each=np.abs)
        change = torch.abs if self.form == "element" else torch.square
        return per_unit(graph, elementwise(change), inputs=True, tensors=products)


@dataclass(frozen=True, slots=True)
class OBD(LossCriterion):
    """Optimal brain damage with the empirical Fisher diagonal: I_u = sum over all members of w^2 mean_n(g_n^2).

    g_n is the gradient of sample n alone, which takes one backward pass per sample.

    Source: LeCun et al., 1990; the group form of PruningBench.
    """

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        names, loss = _float_members(graph), data.loss(graph, self.loss)
        sums = Sums()
        with preserve_state(graph.model, graph.written):
            for batch in data.stream(graph, sums, "OBD"):
                for gradients in sample_gradients(graph, loss, batch, names):
                    for name, g in zip(names, gradients, strict=True):
                        sums.plus(name, g.square(), g.dtype)
        damages = {n: graph.tensor(n).detach().square() * (sums[n] / sums.samples) for n in names}
        return per_unit(graph, _SUM, inputs=True, tensors=damages)


@dataclass(frozen=True, slots=True)
class Fisher(LossCriterion):
    """Fisher information of a gate on the unit: I_u = 1/(2N) sum over samples n of (sum over members of dL_n/dm_u)^2.

    Members are the weights that consume the unit; if there are none (dims of queries and keys), those that produce it. One
    backward pass per sample.

    Source: Fisher pruning (2018); Liu et al., 2021 (group Fisher).
    """

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        return {n: v / 2 for n, v in _mean_over_samples(graph, self.loss, data, "Fisher", np.square).items()}


@dataclass(frozen=True, slots=True)
class GateTaylor(LossCriterion):
    """First-order Taylor expansion in activations: I_u = mean over samples n of |dL_n/dm_u|.

    dL_n/dm_u is the sum over positions of a dL_n/da. Members are as for `Fisher`; one backward pass per sample.

    Source: Molchanov et al., 2017; TorchPruner's Taylor.

    Attributes:
        loss: mean over a batch.
        signed: whether to take the mean of -dL_n/dm_u instead, the increase of the loss by removing the unit.

    Raises:
        ArgumentError: an argument of another type.
    """

    signed: bool = False

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        change = np.negative if self.signed else np.abs
        return _mean_over_samples(graph, self.loss, data, f"GateTaylor {self.signed}", change)


@dataclass(frozen=True, slots=True)
class Sensitivity(LossCriterion):
    """Mean magnitude of the loss's gradient with respect to the activation: I_u = E[sum over positions of |dL_n/da_u|].

    Gradients of the loss, a mean over a batch, are multiplied by the batch size to get those of samples. Scores are averaged
    over the positions of a unit and over the consumers of a group.

    Source: Mittal et al., 2018; TorchPruner's Sensitivity.
    """

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        loss = data.loss(graph, self.loss)
        wanted = list(dict.fromkeys(axis for axes in consumer_inputs(graph).values() for axis in axes))
        sums, size = Sums(), 0

        def tap(axis: InputAxis) -> Tap:
            def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
                if tensors[axis.argument].requires_grad:
                    tensors[axis.argument].register_hook(lambda gradient: add(axis, gradient))

            return Tap(axis.op, read)

        def add(axis: InputAxis, gradient: Tensor | None) -> None:
            if gradient is None:
                return
            rows = gradient.detach().abs().movedim(axis.dim, 0).flatten(1)
            sums.plus(axis.key, rows.sum(1, dtype=torch.float64) * size)

        names = [n for n, s in graph.states.items() if s.parameter and graph.tensor(n).is_floating_point()]
        with preserve_state(graph.model, graph.written), tapped(graph, [tap(axis) for axis in wanted]):
            for batch in data.stream(graph, sums, "Sensitivity"):
                size = batch_size(batch)
                loss_gradients(graph, loss, batch, names)
        values = {
            axis: sums[axis.key].cpu().numpy() / sums.samples if axis.key in sums else np.zeros(axis.space(graph).size)
            for axis in wanted
        }
        return mean_over_axes(graph, values)


def _float_members(graph: Graph) -> list[str]:
    """Return the names of floating-point parameters that are members of groups."""
    names = dict.fromkeys(name for name, _ in group_members(graph, inputs=True))
    return [n for n in names if graph.tensor(n).is_floating_point()]


def _mean_over_samples(graph: Graph, loss: Loss, data: Data, title: str, change: np.ufunc) -> UnitScores:
    """Return mean_n change(dL_n/dm_u) for each unit."""
    sums, loss = Sums(), data.loss(graph, loss)
    gates = [_Gate(graph, g) for g in graph.groups]
    names = [n for n in _float_members(graph) if any(n == name for gate in gates for name, _, _ in gate.places)]
    with preserve_state(graph.model, graph.written):
        for batch in data.stream(graph, sums, title):
            for gradients in sample_gradients(graph, loss, batch, names):
                products = {n: graph.tensor(n).detach() * g for n, g in zip(names, gradients, strict=True)}
                for gate in gates:
                    sums.plus(gate.group.name, torch.from_numpy(change(gate.derivative(products))))
    return {g.name: sums[g.name].numpy() / sums.samples for g in graph.groups}


class _Gate:
    """The weights whose gradients give the derivative of a group's gates: those that consume its units, or produce them."""

    def __init__(self, graph: Graph, group: Group) -> None:
        self.group = group
        members = {(m.name, m.dim) for m in group.members}
        consuming = [p for p in group_members(graph, inputs=True, outputs=False) if p in members]
        places = consuming or [p for p in group_members(graph, inputs=False) if p in members]
        self.places = [(n, d, unit_positions(graph.states[n].axes[d], group.atom)) for n, d in places]

    def derivative(self, products: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Return dL/dm, [units], from the products w * dL/dw by parameter."""
        total = np.zeros(self.group.size)
        for name, dim, index in self.places:
            if name in products:
                total += _SUM(products[name], dim).double().cpu().numpy()[index].sum(1)
        return total
