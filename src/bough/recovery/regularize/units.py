"""The units of a group as parts of parameters: what coupled members have in common, read and changed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import PlanError, names_in
from bough.graph import Graph, Group
from bough.spaces import coordinates, normal


@dataclass(eq=False, slots=True)
class Place:
    """A dim of a parameter and the unit of each of its indices, -1 where it belongs to none."""

    tensor: Tensor
    dim: int
    units: Tensor

    def here(self) -> Tensor:
        """The units, where the parameter is: it may have been moved."""
        if self.units.device != self.tensor.device:
            self.units = self.units.to(self.tensor.device)
        return self.units

    def summed(self, values: Tensor, size: int) -> Tensor:
        """Values of the parameter's shape, added up per unit."""
        others = [d for d in range(values.dim()) if d != self.dim]
        along = values.sum(others) if others else values
        units = self.here()
        there = units >= 0
        return along.new_zeros(size).index_add_(0, units[there], along[there])

    def spread(self, values: Tensor, elsewhere: float) -> Tensor:
        """A value per unit, in a shape that broadcasts over the parameter; `elsewhere` where no unit is."""
        units = self.here()
        along = torch.where(units >= 0, values.to(self.tensor)[units.clamp(min=0)], elsewhere)
        return along.view([-1 if d == self.dim else 1 for d in range(self.tensor.dim())])


@dataclass(frozen=True, eq=False, slots=True)
class Units:
    """A group's units in all parameters that have them: what computes them, scales and shifts them, and what reads them.

    An element that two members share (a weight from a cut layer to itself) counts once in each.
    """

    name: str
    size: int
    places: tuple[Place, ...]

    def summed(self, saliency: Callable[[Tensor], Tensor]) -> Tensor:
        """A saliency of the elements, added up per unit over all members: [units]."""
        total: Tensor | None = None
        for p in self.places:
            wide = p.tensor.detach().to(torch.promote_types(p.tensor.dtype, torch.float32))
            part = p.summed(saliency(wide), self.size)
            total = part if total is None else total + part.to(total)
        assert total is not None
        return total

    def elements(self) -> Tensor:
        """How many elements each unit has."""
        return self.summed(torch.ones_like)

    def squares(self) -> Tensor:
        """The sum of squares of each unit's elements."""
        return self.summed(torch.square)

    def norms(self) -> Tensor:
        """The root of `squares`."""
        return self.squares().sqrt()

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiplies each unit's elements, in all members, by its factor."""
        for p in self.places:
            p.tensor.mul_(p.spread(factors, 1.0))

    @torch.no_grad()
    def decay_(self, strengths: Tensor) -> None:
        """Adds strength x weight to the gradients of each unit's elements: the gradient of strength / 2 x sum of squares."""
        for p in self.places:
            if p.tensor.grad is not None:
                p.tensor.grad.addcmul_(p.spread(strengths, 0.0).to(p.tensor.grad), p.tensor)


def all_units(graph: Graph, groups: Iterable[str] | None = None) -> tuple[tuple[Units, ...], dict[str, str]]:
    """The units of the groups named, or of all whose units can be trained to zero; and why the others are left out.

    Raises:
        PlanError: a name that is no group, or a group whose units can not be zero or are not trained.
    """
    found, left = [], {}
    for group in graph.groups:
        reason = _unfit(graph, group, chosen=groups is not None)
        if reason:
            left[group.name] = reason
        else:
            found.append(_units(graph, group))
    if groups is not None:
        names = names_in(groups, "groups")
        if not names:
            raise PlanError("groups=[] names no group: leave it out for all groups whose units can be trained to zero")
        for name in names:
            if all(g.name != name for g in graph.groups):
                raise PlanError(
                    f"groups names {name!r}, which is no group; there are {', '.join(g.name for g in graph.groups)}"
                )
            if name in left:
                raise PlanError(f"the group {name!r} can not be regularized: {left[name]}")
        left.update({u.name: "not asked for" for u in found if u.name not in names})
        found = [u for u in found if u.name in names]
    if not found:
        raise PlanError(
            f"no group can be regularized: {'; '.join(f'{n}: {why}' for n, why in left.items()) or 'there is none'}"
        )
    return tuple(found), left


def can_be_zero(graph: Graph, group: Group) -> bool:
    """Whether no op divides by the norm of a unit, as weight norm does."""
    return not any(group.atom in normal(s).atoms for op in graph.ops for s in op.undefined)


def _unfit(graph: Graph, group: Group, *, chosen: bool) -> str:
    if not can_be_zero(graph, group):
        return "an op divides by the norm of its units, which can not be zero (weight norm)"
    for m in group.members:
        if graph.states[m.name].parameter and not graph.tensor(m.name).requires_grad:
            return f"{m.name} is not trained"
    return (
        "" if group.exact or chosen else "a statistic runs over it, so units at zero still count (name it in groups to have it)"
    )


def _units(graph: Graph, group: Group) -> Units:
    places = []
    for m in group.members:
        if graph.states[m.name].parameter:
            tensor = graph.tensor(m.name)
            for units in coordinates(graph.states[m.name].axes[m.dim], group.atom):
                places.append(Place(tensor, m.dim, torch.from_numpy(units).to(tensor.device)))
    return Units(group.name, group.size, tuple(places))


def scores_of(graph: Graph, units: Iterable[Units], measure: Callable[[Units], Tensor]) -> dict[str, NDArray[np.float64]]:
    """Scores for `bough.plan`: `measure` where there are units, and the norm of all members for the groups left out."""
    from bough.importance import GroupNorm, score

    own = {u.name: measure(u).double().cpu().numpy() for u in units}
    return {**score(graph, GroupNorm()), **own}
