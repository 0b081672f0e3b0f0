"""Criteria from gradients of the loss: what would it change if a unit were zero?

Gradients come from the loss's own backward pass, in eval mode; those of the model's parameters stay as they are. A gate
m_u = 1 on a unit has the derivative dL/dm_u = sum of w * dL/dw over the weights that read the unit: so what gates tell
of activations follows from the gradients of weights, for every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.arguments import check_fields
from bough.calibration import Data, Loss, Sums, batch_size, loss_gradients, preserve_state, sample_gradients
from bough.errors import PlanError
from bough.graph import Graph, Group
from bough.importance.reduce import Reduce, elementwise, members, per_unit
from bough.importance.score import UnitScores
from bough.spaces import unit_positions

_SUM: Reduce = elementwise(lambda w: w)


@dataclass(frozen=True, slots=True)
class Taylor:
    """First-order Taylor expansion of the loss, from g = dL/dw over all data; sums run over all members of a unit.

    form:
        "element": I_u = sum of |w g| (Torch-Pruning's GroupTaylorImportance as it is by default). The best of the three
            where it was measured (`benchmarks/defaults.py`).
        "group": I_u = sum over members of |sum of w g|, the magnitude after the sum (LLM-Pruner's vector form): products of
            unlike signs cancel.
        "square": I_u = sum of (w g)^2 (Molchanov et al., 2019; NNI's TaylorFOWeight).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> loss = lambda model, batch: model(batch).square().mean()
        >>> bough.score(bough.trace(net, torch.randn(1, 4)), Taylor(loss), [torch.randn(16, 4)])["0"].shape
        (8,)
    """

    loss: Loss
    form: Literal["element", "group", "square"] = "element"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.form not in ("group", "element", "square"):
            raise PlanError(f"Taylor(form={self.form!r}) is unknown: use 'group', 'element' or 'square'")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        names, loss = _trained(graph), data.loss(graph, self.loss)
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
class OBD:
    """Optimal brain damage with the empirical Fisher diagonal: I_u = sum over all members of w^2 mean_n(g_n^2), g_n the
    gradient of sample n alone (LeCun et al., 1990; the group form of PruningBench).

    One backward pass a sample."""

    loss: Loss
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        names, loss = _trained(graph), data.loss(graph, self.loss)
        sums = Sums()
        with preserve_state(graph.model, graph.written):
            for batch in data.stream(graph, sums, "OBD"):
                for found in sample_gradients(graph, loss, batch, names):
                    for name, g in zip(names, found, strict=True):
                        sums.plus(name, g.square(), g.dtype)
        damages = {n: graph.tensor(n).detach().square() * (sums[n] / sums.samples) for n in names}
        return per_unit(graph, _SUM, inputs=True, tensors=damages)


@dataclass(frozen=True, slots=True)
class Fisher:
    """The Fisher information of a gate on the unit: I_u = 1/(2N) sum over samples n of (sum over coupled members of
    dL_n/dm_u)^2 (Fisher pruning, 2018; group Fisher, Liu et al., 2021).

    Members are the weights that read the unit; where none does (the dims of queries and keys), those that make it. One
    backward pass a sample."""

    loss: Loss
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return {n: v / 2 for n, v in _gates(graph, self.loss, data, "Fisher", np.square).items()}


@dataclass(frozen=True, slots=True)
class GateTaylor:
    """First-order Taylor on activations: I_u = mean over samples n of |dL_n/dm_u|, where dL_n/dm_u = sum over positions of
    a dL_n/da (Molchanov et al., 2017; TorchPruner's Taylor). `signed`: the mean of -dL_n/dm_u, the loss gained by removal.

    Members as for `Fisher`; one backward pass a sample."""

    loss: Loss
    signed: bool = False
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        return _gates(graph, self.loss, data, f"GateTaylor {self.signed}", np.negative if self.signed else np.abs)


def _trained(graph: Graph) -> list[str]:
    """The parameters of floats in which groups occur."""
    names = dict.fromkeys(name for name, _ in members(graph, inputs=True))
    return [n for n in names if graph.tensor(n).is_floating_point()]


def _gates(graph: Graph, loss: Loss, data: Data, title: str, change: np.ufunc) -> UnitScores:
    """mean_n change(dL_n/dm_u) for each unit."""
    sums, loss = Sums(), data.loss(graph, loss)
    gates = [_Gate(graph, g) for g in graph.groups]
    names = [n for n in _trained(graph) if any(n == name for gate in gates for name, _, _ in gate.places)]
    with preserve_state(graph.model, graph.written):
        for batch in data.stream(graph, sums, title):
            for found in sample_gradients(graph, loss, batch, names):
                products = {n: graph.tensor(n).detach() * g for n, g in zip(names, found, strict=True)}
                for gate in gates:
                    sums.plus(gate.group.name, torch.from_numpy(change(gate.derivative(products))))
    return {g.name: sums[g.name].numpy() / sums.samples for g in graph.groups}


class _Gate:
    """Where a group's gate acts: on the weights that read its units, or on what makes them where none does."""

    def __init__(self, graph: Graph, group: Group) -> None:
        self.group = group
        own = {(m.name, m.dim) for m in group.members}
        reading = [p for p in members(graph, inputs=True, outputs=False) if p in own]
        places = reading or [p for p in members(graph, inputs=False) if p in own]
        self.places = [(n, d, unit_positions(graph.states[n].axes[d], group.atom)) for n, d in places]

    def derivative(self, products: Mapping[str, Tensor]) -> NDArray[np.float64]:
        total = np.zeros(self.group.size)
        for name, dim, index in self.places:
            if name in products:
                total += _SUM(products[name], dim).double().cpu().numpy()[index].sum(1)
        return total
