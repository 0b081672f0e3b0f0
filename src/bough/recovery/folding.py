"""`merge`: without data, units that leave hand their part to the kept unit that is most like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.cutting.check import check
from bough.cutting.cut import copied, cut
from bough.graph import Graph, Group
from bough.importance.redundancy import unit_vectors
from bough.planning.plan import Plan
from bough.recovery.pairing import kept_units
from bough.spaces import Each, normal, unit_positions
from bough.tracing.contractions import contractions, weights_of


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge` gives: the cut model; for each group how much of the removed units' weights, on average, is not that of the
    ones that stand for them; groups of which nothing could be merged, and why; the plan that the model was cut by."""

    model: nn.Module
    groups: dict[str, float]
    skipped: dict[str, str]
    plan: Plan

    def __str__(self) -> str:
        lines = [f"{'merged':48} {'distance':>9}"]
        lines += [f"{name:48} {distance:9.1%}" for name, distance in self.groups.items()]
        lines += [f"not merged: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def merge(graph: Graph, plan: Plan) -> Merged:
    """Cuts the graph's model, which stays as it was; consumers read from kept units what they read from removed ones.

    For each unit u that leaves, with v the kept one whose weights point most in its direction (w_u ~ a w_v, a >= 0): in every
    weight that reads the group W_v += a W_u. Exact where u and v are alike, or multiples before a ReLU; before Tanh and
    Sigmoid, which do not scale with their input, unlike lengths merge badly: compare with the plain cut. No data is needed
    (model folding, Wang et al., 2025, with the units that the plan keeps in place of cluster means); `refit` does far better
    where there is some.

    Raises:
        PlanError: the plan was made for another model.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     for p in net[0].parameters():
        ...         p[4:] = p[:4]
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, {"0": torch.arange(8, 0, -1).double().numpy()}, keep=0.5)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(merge(graph, plan).model(x), net(x), atol=1e-6)
        True
    """
    check_arguments(merge, locals())
    check(graph.model, plan)
    kept = kept_units(graph, plan)
    reading = _reading(graph)
    added: dict[str, list[tuple[int, Tensor, Tensor, Tensor]]] = {}
    groups: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for group in graph.groups:
        units = kept.get(group.atom)
        if units is None:
            continue
        places = [(m.name, m.dim) for m in group.members if (m.name, m.dim) in reading]
        if isinstance(units, Each) or not places:
            skipped[group.name] = "its units differ for each unit of another group" if places else "no weight reads its units"
            continue
        gone, heirs, factors, groups[group.name] = _nearest(graph, group, units)
        for name, dim in places:
            where = torch.from_numpy(unit_positions(normal(graph.states[name].axes[dim]), group.atom))
            source, target = where[gone], where[heirs]
            each = factors[:, None].expand(source.shape)
            added.setdefault(name, []).append((dim, source.flatten(), target.flatten(), each.flatten()))

    def change(name: str, tensor: Tensor, parameter: bool) -> Tensor:
        value = tensor.clone()
        for dim, source, target, factors in added.get(name, ()):
            part = value.index_select(dim, source.to(value.device))
            part = part * factors.to(value).view(-1, *(1,) * (value.dim() - dim - 1))
            value.index_add_(dim, target.to(value.device), part)
        return value

    return Merged(cut(copied(graph.model, change)[0], plan), groups, skipped, plan)


def _reading(graph: Graph) -> set[tuple[str, int]]:
    """The (parameter, dim)s that ops contract with activations, as they are."""
    origin = weights_of(graph)

    def places() -> Iterator[tuple[str, int]]:
        for c in contractions(graph.ops):
            if any(origin(c.op, i) is None for i, _ in c.places):
                yield from ((c.op.states[i], d) for i, d in c.places if origin(c.op, i) and c.op.states[i])

    return set(places())


def _nearest(graph: Graph, group: Group, kept: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, float]:
    """The units that leave, the kept one most like each, how much of that each is, and what is left of them on average."""
    vectors = torch.cat([v.double().cpu() for v in unit_vectors(graph, group)], 1)
    stay = torch.from_numpy(kept)
    gone = torch.from_numpy(np.setdiff1d(np.arange(group.size), kept))
    lengths = torch.linalg.vector_norm(vectors, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    cosines = (vectors[gone] @ vectors[stay].mT) / (lengths[gone, None] * lengths[stay])
    best, at = cosines.clamp(0, 1).max(1)
    heirs = stay[at]
    return gone, heirs, best * lengths[gone] / lengths[heirs], float((1 - best.square()).clamp_min(0).sqrt().mean())
