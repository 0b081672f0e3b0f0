"""The elements of each unit of a group in all coupled parameters, reduced and changed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.errors import PlanError, names_in
from bough.graph import Graph, Group
from bough.importance import GroupNorm, UnitScores, score
from bough.spaces import coordinates, normal


@dataclass(eq=False, slots=True)
class UnitSlices:
    """A dim of a parameter, and the unit to which each index belongs: int64 [size of the dim], -1 for none."""

    tensor: Tensor
    dim: int
    units: Tensor

    def unit_index(self) -> Tensor:
        """Return `units` on the parameter's device, which may have changed."""
        if self.units.device != self.tensor.device:
            self.units = self.units.to(self.tensor.device)
        return self.units

    def summed(self, values: Tensor, size: int) -> Tensor:
        """Return the sum per unit, [size], of values with the parameter's shape."""
        others = [d for d in range(values.dim()) if d != self.dim]
        by_index = values.sum(others) if others else values
        units = self.unit_index()
        belongs = units >= 0
        return by_index.new_zeros(size).index_add_(0, units[belongs], by_index[belongs])

    def broadcast(self, values: Tensor, default: float) -> Tensor:
        """Return one value per unit in a shape that broadcasts over the parameter; `default` for indices without a unit."""
        units = self.unit_index()
        by_index = torch.where(units >= 0, values.to(self.tensor)[units.clamp(min=0)], default)
        return by_index.view([-1 if d == self.dim else 1 for d in range(self.tensor.dim())])


@dataclass(frozen=True, eq=False, slots=True)
class GroupUnits:
    """A group's units in all parameters that have them: in the weights that produce, scale, shift and consume the units.

    An element that belongs to the group along two dims (a weight from a cut layer to itself) counts once for each.

    Attributes:
        name: of the group.
        size: number of units.
        slices: parameters and dims.
    """

    name: str
    size: int
    slices: tuple[UnitSlices, ...]

    def summed(self, saliency: Callable[[Tensor], Tensor]) -> Tensor:
        """Return an elementwise saliency, summed per unit over all members: [units], float32 at least."""
        total: Tensor | None = None
        for s in self.slices:
            wide = s.tensor.detach().to(torch.promote_types(s.tensor.dtype, torch.float32))
            part = s.summed(saliency(wide), self.size)
            total = part if total is None else total + part.to(total)
        assert total is not None
        return total

    def elements(self) -> Tensor:
        """Return the number of elements of each unit: [units]."""
        return self.summed(torch.ones_like)

    def squares(self) -> Tensor:
        """Return the sum of squares of each unit's elements: [units]."""
        return self.summed(torch.square)

    def norms(self) -> Tensor:
        """Return the L2 norm of each unit: [units]."""
        return self.squares().sqrt()

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the elements of each unit, in all members, by its factor; `factors`: [units]."""
        for s in self.slices:
            s.tensor.mul_(s.broadcast(factors, 1.0))

    @torch.no_grad()
    def decay_(self, strengths: Tensor) -> None:
        """Add strength x weight to the gradients of each unit's elements; `strengths`: [units].

        This is the gradient of strength / 2 x the sum of squares.
        """
        for s in self.slices:
            if s.tensor.grad is not None:
                s.tensor.grad.addcmul_(s.broadcast(strengths, 0.0).to(s.tensor.grad), s.tensor)


def regularizable_units(graph: Graph, groups: Iterable[str] | None = None) -> tuple[tuple[GroupUnits, ...], dict[str, str]]:
    """Return the units of groups that can be trained to zero, and the reasons why other groups are left out.

    Args:
        graph: of the model that is trained.
        groups: names of groups; all suitable ones unless given.

    Raises:
        PlanError: a name that is no group, or a group whose units cannot be zero or are not trained.
    """
    suitable, left_out = [], {}
    for group in graph.groups:
        reason = _obstacle(graph, group, named=groups is not None)
        if reason:
            left_out[group.name] = reason
        else:
            suitable.append(_units_of(graph, group))
    if groups is not None:
        names = _checked_names(graph, groups, left_out)
        left_out.update({u.name: "not asked for" for u in suitable if u.name not in names})
        suitable = [u for u in suitable if u.name in names]
    if not suitable:
        raise PlanError(
            f"no group can be regularized: {'; '.join(f'{n}: {why}' for n, why in left_out.items()) or 'there is none'}"
        )
    return tuple(suitable), left_out


def _checked_names(graph: Graph, groups: Iterable[str], left_out: dict[str, str]) -> list[str]:
    """Return the names in the argument `groups`, or raise PlanError if one is unknown or left out."""
    names = list(names_in(groups, "groups"))
    if not names:
        raise PlanError("groups=[] names no group: leave it out for all groups whose units can be trained to zero")
    for name in names:
        if all(g.name != name for g in graph.groups):
            raise PlanError(f"groups names {name!r}, which is no group; there are {', '.join(g.name for g in graph.groups)}")
        if name in left_out:
            raise PlanError(f"the group {name!r} can not be regularized: {left_out[name]}")
    return names


def can_be_zero(graph: Graph, group: Group) -> bool:
    """Whether all parameters of a unit may be zero: no operator divides by the norm of a unit, as weight norm does."""
    return not any(group.atom in normal(s).atoms for op in graph.all_ops for s in op.undefined)


def _obstacle(graph: Graph, group: Group, *, named: bool) -> str:
    """Return why a group cannot be regularized; "" if it can. `named`: whether the user has named groups."""
    if not can_be_zero(graph, group):
        return "an op divides by the norm of its units, which can not be zero (weight norm)"
    for m in group.members:
        if graph.states[m.name].parameter and not graph.tensor(m.name).requires_grad:
            return f"{m.name} is not trained"
    return (
        "" if group.exact or named else "a statistic runs over it, so units at zero still count (name it in groups to have it)"
    )


def _units_of(graph: Graph, group: Group) -> GroupUnits:
    """Return the units of a group in all its parameters."""
    slices = []
    for m in group.members:
        if graph.states[m.name].parameter:
            tensor = graph.tensor(m.name)
            for units in coordinates(graph.states[m.name].axes[m.dim], group.atom):
                slices.append(UnitSlices(tensor, m.dim, torch.from_numpy(units).to(tensor.device)))
    return GroupUnits(group.name, group.size, tuple(slices))


def scores_by(graph: Graph, units: Iterable[GroupUnits], measure: Callable[[GroupUnits], Tensor]) -> UnitScores:
    """Return scores for `bough.plan`: `measure` of the given units, and the norm over all members for other groups."""
    measured = {u.name: measure(u).double().cpu().numpy() for u in units}
    return {**score(graph, GroupNorm()), **measured}
