"""Penalties that make the weights of whole units small during training, so that a later cut changes little."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance import UnitScores
from bough.recovery.regularize.group_units import GroupUnits, regularizable_units, scores_by
from bough.recovery.training import Attachment, check_optimizer, hook_after_step, hook_before_step, unwrap_optimizer


class _Penalty:
    """A regularizer on the units of groups that acts before each optimizer step."""

    settled = False  # a penalty keeps shrinking units, so the last epoch counts and not the best one
    graph: Graph
    units: tuple[GroupUnits, ...]
    left_out: dict[str, str]

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Register the hooks on an optimizer.

        Raises:
            TrainingError: the optimizer has no parameter of the graph's model.
        """
        check_optimizer(optimizer, self.graph.model.parameters(), "the graph's model")
        return self._hook(optimizer)

    def _hook(self, optimizer: Optimizer) -> Attachment:
        """Register the hook of the regularizer."""
        return hook_before_step(optimizer, self._add_gradients)

    def _add_gradients(self) -> None:
        """Add the gradient of the penalty to the gradients of the parameters."""

    def scores(self) -> UnitScores:
        """Return the norms of the units, for a plan to a budget: {group: float64 [units]}."""
        return scores_by(self.graph, self.units, GroupUnits.norms)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


class GroupLasso(_Penalty):
    """Group lasso by proximal steps: whole units become exactly zero, in all coupled members at once.

    After each optimizer step, W_u <- W_u max(0, 1 - lr strength sqrt(n_u) / ||W_u||), where ||W_u|| is the norm over the n_u
    elements of the unit's members. If an element belongs to units of two groups, its factors multiply. Afterwards,
    `bough.recovery.zeros(graph)` is the plan that cuts exactly the zero units.

    Source: Yuan and Lin, 2006.

    Args:
        graph: of the model that is trained.
        strength: lambda, above 0.
        groups: names of groups; all exact groups that are trained unless given. The attribute `left_out` lists the others with
            reasons.

    Raises:
        ArgumentError, PlanError: a strength that is not a positive number, or groups that cannot be regularized.

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
        self.units, self.left_out = regularizable_units(graph, groups)
        self._size_roots = {u.name: u.elements().sqrt() for u in self.units}

    def _hook(self, optimizer: Optimizer) -> Attachment:
        return hook_after_step(optimizer, self._shrink)

    def _shrink(self, optimizer: Optimizer) -> None:
        """Apply the proximal step."""
        rates = {id(p): float(g["lr"]) for g in unwrap_optimizer(optimizer).param_groups for p in g["params"]}
        factors = []
        for units in self.units:
            rate = max((rates[id(s.tensor)] for s in units.slices if id(s.tensor) in rates), default=0.0)
            norms = units.norms()
            threshold = rate * self.strength * self._size_roots[units.name].to(norms)
            factors.append((1 - threshold / norms).nan_to_num(0.0).clamp(min=0))
        for units, factor in zip(self.units, factors, strict=True):
            units.scale_(factor)


class SparseLearning(_Penalty):
    """Sparse learning of DepGraph: weak units decay up to 2^alpha times as fast as the strongest.

    Before each step, the gradient of unit k's elements, in all coupled members, gets strength gamma_k w, with gamma_k =
    2^(alpha (Imax - I_k) / (Imax - Imin)) and I_k the unit's norm over all members.

    Source: Fang et al., 2023 (DepGraph).

    Args:
        graph: of the model that is trained.
        strength: decay of the strongest unit, above 0.
        alpha: exponent of the ratio between weakest and strongest unit.
        every: number of steps after which gamma is recomputed.
        groups: names of groups; all exact groups that are trained unless given.

    Raises:
        ArgumentError, PlanError: a strength that is not a positive number, or groups that cannot be regularized.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> penalty = SparseLearning(bough.trace(net, torch.randn(1, 4)), strength=1e-3)
        >>> attached = penalty.attach(torch.optim.SGD(net.parameters(), 0.1))
        >>> penalty.scores()["0"].shape
        (8,)
    """

    def __init__(
        self, graph: Graph, strength: float = 5e-4, *, alpha: float = 4.0, every: int = 100,
        groups: Iterable[str] | None = None,
    ) -> None:  # fmt: skip
        check_arguments(SparseLearning.__init__, locals())
        self.graph, self.strength, self.alpha, self.every = graph, _positive("strength", strength), alpha, every
        self.units, self.left_out = regularizable_units(graph, groups)
        self.step = 0
        self.gammas: dict[str, Tensor] = {}

    def _add_gradients(self) -> None:
        if self.step % self.every == 0:
            self.gammas = {u.name: 2 ** (self.alpha * relative_weakness(u.norms())) for u in self.units}
        for units in self.units:
            units.decay_(self.strength * self.gammas[units.name])
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return step and gammas."""
        return {"step": self.step, "gammas": dict(self.gammas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.step, self.gammas = int(state["step"]), dict(state["gammas"])


class GrowingPenalty(_Penalty):
    """Growing regularization (GReg-2): the weaker a unit, the faster its decay grows.

    Before each step, the gradient of unit k's elements, in all coupled members, gets lambda_k w; every `every` steps lambda_k
    grows by `growth` (Imax - I_k) / (Imax - Imin), up to `ceiling`.

    Source: Wang et al., 2021 (neural pruning via growing regularization).

    Args:
        graph: of the model that is trained.
        growth: largest increase of a decay, above 0.
        every: number of steps between increases.
        ceiling: largest decay.
        groups: names of groups; all exact groups that are trained unless given.

    Raises:
        ArgumentError, PlanError: a growth that is not a positive number, or groups that cannot be regularized.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> penalty = GrowingPenalty(bough.trace(net, torch.randn(1, 4)), growth=1.0, every=1)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> attached = penalty.attach(sgd)
        >>> net(torch.randn(3, 4)).sum().backward()
        >>> sgd.step()
        >>> penalty.done
        True
    """

    def __init__(
        self, graph: Graph, growth: float = 1e-4, *, every: int = 10, ceiling: float = 1.0, groups: Iterable[str] | None = None
    ) -> None:  # fmt: skip
        check_arguments(GrowingPenalty.__init__, locals())
        self.graph, self.growth, self.every, self.ceiling = graph, _positive("growth", growth), every, ceiling
        self.units, self.left_out = regularizable_units(graph, groups)
        self.step = 0
        self.strengths = {u.name: torch.zeros_like(u.norms()) for u in self.units}

    @property
    def done(self) -> bool:
        """True if the weakest unit of every group has the largest decay."""
        return all(float(s.max()) >= self.ceiling for s in self.strengths.values())

    def _add_gradients(self) -> None:
        self.step += 1
        for units in self.units:
            if self.step % self.every == 0:
                increase = self.growth * relative_weakness(units.norms())
                self.strengths[units.name] = (self.strengths[units.name].to(increase) + increase).clamp(max=self.ceiling)
            units.decay_(self.strengths[units.name])

    def state_dict(self) -> dict[str, Any]:
        """Return step and decays."""
        return {"step": self.step, "strengths": dict(self.strengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.step, self.strengths = int(state["step"]), dict(state["strengths"])


class Slimming(_Penalty):
    """Network slimming: strength sign(gamma) is added to the gradients of batch-norm weights gamma.

    If several batch norms are coupled (by shortcuts), they share units, whose score is the sum of their |gamma|. After a cut by
    `scores()`, the shifts of the cut channels are lost. The attribute `left_out` lists the groups without a batch norm.

    Source: Liu et al., 2017 (network slimming).

    Args:
        graph: of the model that is trained.
        strength: of the L1 penalty, above 0.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a strength that is not positive, or no group has a batch norm.

    Example:
        >>> import torch, bough
        >>> conv = torch.nn.Conv2d
        >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), conv(8, 4, 3))
        >>> slimming = Slimming(bough.trace(net.eval(), torch.randn(2, 3, 8, 8)))
        >>> slimming.scores()["0"].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, graph: Graph, strength: float = 1e-4) -> None:
        check_arguments(Slimming.__init__, locals())
        self.graph, self.strength = graph, _positive("strength", strength)
        norms = {id(m.weight) for m in graph.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        norms &= {id(p) for p in graph.model.parameters()}
        all_units, self.left_out = regularizable_units(graph)
        self.units = tuple(
            GroupUnits(u.name, u.size, scales)
            for u in all_units
            if (scales := tuple(s for s in u.slices if id(s.tensor) in norms))
        )
        has_norm = {u.name for u in self.units}
        self.left_out.update({u.name: "it has no batch norm" for u in all_units if u.name not in has_norm})
        if not self.units:
            raise PlanError(f"{type(graph.model).__name__} has no batch norm over units that can be cut: slim by GroupLasso")

    @torch.no_grad()
    def _add_gradients(self) -> None:
        for scale in (s for units in self.units for s in units.slices):
            if scale.tensor.grad is not None:
                scale.tensor.grad.add_(scale.tensor.sign() * (scale.unit_index() >= 0), alpha=self.strength)

    def scores(self) -> UnitScores:
        """Return |gamma| of the units, and norms for groups without a batch norm, for a plan to a budget."""
        return scores_by(self.graph, self.units, lambda u: u.summed(torch.abs))


def relative_weakness(norms: Tensor) -> Tensor:
    """Return (Imax - I) / (Imax - Imin) of norms I [units]: 0 for the strongest, 1 for the weakest; 0 if all are equal."""
    spread = norms.max() - norms.min()
    return (norms.max() - norms) / spread if spread > 0 else torch.zeros_like(norms)


def _positive(name: str, value: float) -> float:
    """Return `value`, or raise PlanError if it is not positive."""
    if value <= 0:
        raise PlanError(f"{name}={value}: must be positive")
    return value
