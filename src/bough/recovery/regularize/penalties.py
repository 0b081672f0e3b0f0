"""Penalties that make units small while training, for a cut by what is left of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance.score import UnitScores
from bough.recovery.attach import Attachment, after_each_step, before_each_step, check_holds, innermost
from bough.recovery.regularize.units import Units, all_units, scores_of


class _Unsettled:
    settled = False  # the longer the better: no earlier epoch will do for the last


class GroupLasso(_Unsettled):
    """Group lasso by proximal steps: whole units become exactly zero, in all coupled members at once.

    After each step of the optimizer, W_u <- W_u max(0, 1 - lr strength sqrt(n_u) / ||W_u||), with ||W_u|| over the n_u
    elements of the unit's members (Yuan and Lin, 2006). Where an element belongs to units of two groups, its factors
    multiply. It ends in `bough.recovery.zeros(graph)`: the plan that cuts exactly what is zero.

    Args:
        graph: of the model that is trained.
        strength: lambda.
        groups: names of groups; all exact ones that are trained unless given. `left_out` tells which are not, and why.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> lasso = GroupLasso(bough.trace(net, torch.randn(1, 4)), strength=100.0)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> attached = lasso.attach(sgd)
        >>> net(torch.randn(3, 4)).sum().backward()
        >>> sgd.step()
        >>> int(net[0].weight.count_nonzero())
        0
    """

    def __init__(self, graph: Graph, strength: float, groups: Iterable[str] | None = None) -> None:
        check_arguments(GroupLasso.__init__, locals())
        self.graph, self.strength = graph, _positive("strength", strength)
        self.units, self.left_out = all_units(graph, groups)
        self._sizes = {u.name: u.elements().sqrt() for u in self.units}

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self.graph.model.parameters(), "the graph's model")
        return after_each_step(optimizer, self._shrink)

    def _shrink(self, optimizer: Optimizer) -> None:
        rates = {id(p): float(g["lr"]) for g in innermost(optimizer).param_groups for p in g["params"]}
        factors = []
        for units in self.units:
            rate = max((rates[id(p.tensor)] for p in units.places if id(p.tensor) in rates), default=0.0)
            norms = units.norms()
            threshold = rate * self.strength * self._sizes[units.name].to(norms)
            factors.append((1 - threshold / norms).nan_to_num(0.0).clamp(min=0))
        for units, factor in zip(self.units, factors, strict=True):
            units.scale_(factor)

    def scores(self) -> UnitScores:
        """The norms of the units, for a plan to a budget."""
        return scores_of(self.graph, self.units, Units.norms)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SparseLearning(_Unsettled):
    """DepGraph's sparse learning: weak units decay up to 2^alpha times as fast as the strongest (Fang et al., 2023).

    Before each step, the gradient of unit k's elements, in all coupled members, gets strength gamma_k w, with gamma_k =
    2^(alpha (Imax - I_k) / (Imax - Imin)) and I_k the unit's norm over all members; gamma is taken anew every `every` steps.
    """

    def __init__(
        self, graph: Graph, strength: float = 5e-4, *, alpha: float = 4.0, every: int = 100,
        groups: Iterable[str] | None = None,
    ) -> None:  # fmt: skip
        check_arguments(SparseLearning.__init__, locals())
        self.graph, self.strength, self.alpha, self.every = graph, _positive("strength", strength), alpha, every
        self.units, self.left_out = all_units(graph, groups)
        self.step = 0
        self.gammas: dict[str, Tensor] = {}

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self.graph.model.parameters(), "the graph's model")
        return before_each_step(optimizer, self._decay)

    def _decay(self) -> None:
        if self.step % self.every == 0:
            self.gammas = {u.name: 2 ** (self.alpha * gaps(u.norms())) for u in self.units}
        for units in self.units:
            units.decay_(self.strength * self.gammas[units.name])
        self.step += 1

    def scores(self) -> UnitScores:
        """The norms of the units, for a plan to a budget."""
        return scores_of(self.graph, self.units, Units.norms)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "gammas": dict(self.gammas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.gammas = int(state["step"]), dict(state["gammas"])


class GrowingPenalty(_Unsettled):
    """Growing regularization (GReg-2, Wang et al., 2021): the weaker a unit, the faster its decay grows.

    Before each step, the gradient of unit k's elements, in all coupled members, gets lambda_k w; every `every` steps lambda_k
    grows by `growth` (Imax - I_k) / (Imax - Imin), up to `ceiling`. `done` tells when a unit of every group is at the ceiling.
    """

    def __init__(
        self, graph: Graph, growth: float = 1e-4, *, every: int = 10, ceiling: float = 1.0, groups: Iterable[str] | None = None
    ) -> None:  # fmt: skip
        check_arguments(GrowingPenalty.__init__, locals())
        self.graph, self.growth, self.every, self.ceiling = graph, _positive("growth", growth), every, ceiling
        self.units, self.left_out = all_units(graph, groups)
        self.step = 0
        self.strengths = {u.name: torch.zeros_like(u.norms()) for u in self.units}

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self.graph.model.parameters(), "the graph's model")
        return before_each_step(optimizer, self._decay)

    @property
    def done(self) -> bool:
        """Whether the weakest unit of every group has the highest decay."""
        return all(float(s.max()) >= self.ceiling for s in self.strengths.values())

    def _decay(self) -> None:
        self.step += 1
        for units in self.units:
            if self.step % self.every == 0:
                grown = self.growth * gaps(units.norms())
                self.strengths[units.name] = (self.strengths[units.name].to(grown) + grown).clamp(max=self.ceiling)
            units.decay_(self.strengths[units.name])

    def scores(self) -> UnitScores:
        """The norms of the units, for a plan to a budget."""
        return scores_of(self.graph, self.units, Units.norms)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "strengths": dict(self.strengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.strengths = int(state["step"]), dict(state["strengths"])


class Slimming(_Unsettled):
    """Batch-norm slimming: strength sign(gamma) is added to the gradients of batch-norm weights (Liu et al., 2017).

    Where several batch norms are coupled (by shortcuts), they have a unit in common, whose score is the sum of their |gamma|.
    `left_out` tells the groups without a batch norm. After a cut by `scores()`, the shifts of cut channels are gone.
    """

    def __init__(self, graph: Graph, strength: float = 1e-4) -> None:
        check_arguments(Slimming.__init__, locals())
        self.graph, self.strength = graph, _positive("strength", strength)
        norms = {id(m.weight) for m in graph.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        norms &= {id(p) for p in graph.model.parameters()}
        found, self.left_out = all_units(graph)
        self.units = tuple(
            Units(u.name, u.size, places) for u in found if (places := tuple(p for p in u.places if id(p.tensor) in norms))
        )
        self.left_out.update({u.name: "it has no batch norm" for u in found if all(u.name != s.name for s in self.units)})
        if not self.units:
            raise PlanError(f"{type(graph.model).__name__} has no batch norm over units that can be cut: slim by GroupLasso")

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self.graph.model.parameters(), "the graph's model")
        return before_each_step(optimizer, self._pull)

    @torch.no_grad()
    def _pull(self) -> None:
        for place in (p for units in self.units for p in units.places):
            if place.tensor.grad is not None:
                place.tensor.grad.add_(place.tensor.sign() * (place.here() >= 0), alpha=self.strength)

    def scores(self) -> UnitScores:
        """|gamma| of the units, and the norms of those without batch norm, for a plan to a budget."""
        return scores_of(self.graph, self.units, lambda u: u.summed(torch.abs))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def gaps(norms: Tensor) -> Tensor:
    """(Imax - I) / (Imax - Imin): 0 for the strongest unit, 1 for the weakest; all 0 where they are alike."""
    apart = norms.max() - norms.min()
    return (norms.max() - norms) / apart if apart > 0 else torch.zeros_like(norms)


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise PlanError(f"{name}={value}: must be positive")
    return value
