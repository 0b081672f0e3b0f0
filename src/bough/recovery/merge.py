"""`merge`: cut without data, adding the consumer weights of each removed unit to those of the most similar kept unit."""

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
from bough.importance import unit_vectors
from bough.planning import Plan
from bough.recovery.correspondence import kept_units
from bough.spaces import Each, normal, unit_positions
from bough.tracing.contractions import contractions, weights_of


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of `merge`.

    Attributes:
        model: the cut model.
        groups: for each merged group, the part of the removed units' weights that the kept units do not represent: the mean
            sine of the angle between a removed unit and the kept one that replaces it, from 0 to 1.
        skipped: groups that could not be merged, with the reason.
        plan: by which the model was cut.
    """

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


@dataclass(frozen=True, slots=True)
class _Addition:
    """Slices along `dim` of a weight that are multiplied by `factors` and added to the slices `target`."""

    dim: int
    source: Tensor
    target: Tensor
    factors: Tensor


@torch.no_grad()
def merge(graph: Graph, plan: Plan) -> Merged:
    """Return a cut copy of the graph's model in which kept units also stand for the removed units that are most like them.

    For each removed unit u, let v be the kept unit whose weights have the most similar direction (w_u ~ a w_v, a >= 0): in
    every weight that reads the group, W_v += a W_u. This is exact if u and v are equal, or multiples before a ReLU. Tanh and
    Sigmoid do not scale with their input, so units of different norms merge badly there: compare with the plain cut. No data
    is needed; with data, `refit` is far better.

    Source: Wang et al., 2025 (model folding), with the units that the plan keeps in place of cluster means.

    Args:
        graph: of the model, which stays as it is.
        plan: made for this model.

    Raises:
        ArgumentError: an argument of another type.
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
    consuming = _consuming_weights(graph)
    additions: dict[str, list[_Addition]] = {}
    groups: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for group in graph.groups:
        units = kept.get(group.atom)
        if units is None:
            continue
        places = [(m.name, m.dim) for m in group.members if (m.name, m.dim) in consuming]
        if isinstance(units, Each) or not places:
            skipped[group.name] = "its units differ for each unit of another group" if places else "no weight reads its units"
            continue
        removed, replacements, factors, groups[group.name] = _nearest_kept(graph, group, units)
        for name, dim in places:
            index = torch.from_numpy(unit_positions(normal(graph.states[name].axes[dim]), group.atom))
            source, target = index[removed], index[replacements]
            each = factors[:, None].expand(source.shape)
            additions.setdefault(name, []).append(_Addition(dim, source.flatten(), target.flatten(), each.flatten()))

    def change(name: str, tensor: Tensor, parameter: bool) -> Tensor:
        value = tensor.clone()
        for a in additions.get(name, ()):
            part = value.index_select(a.dim, a.source.to(value.device))
            part = part * a.factors.to(value).view(-1, *(1,) * (value.dim() - a.dim - 1))
            value.index_add_(a.dim, a.target.to(value.device), part)
        return value

    return Merged(cut(copied(graph.model, change)[0], plan), groups, skipped, plan)


def _consuming_weights(graph: Graph) -> set[tuple[str, int]]:
    """Return the (parameter, dim) pairs that operators contract with activations directly."""
    origin = weights_of(graph)

    def places() -> Iterator[tuple[str, int]]:
        for c in contractions(graph.ops):
            if any(origin(c.op, i) is None for i, _ in c.places):
                yield from ((c.op.states[i], d) for i, d in c.places if origin(c.op, i) and c.op.states[i])

    return set(places())


def _nearest_kept(graph: Graph, group: Group, kept: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the removed units, the most similar kept unit of each, the factor of each, and the mean sine between them."""
    vectors = torch.cat([v.double().cpu() for v in unit_vectors(graph, group)], 1)
    kept_index = torch.from_numpy(kept)
    removed = torch.from_numpy(np.setdiff1d(np.arange(group.size), kept))
    norms = torch.linalg.vector_norm(vectors, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    cosines = (vectors[removed] @ vectors[kept_index].mT) / (norms[removed, None] * norms[kept_index])
    best, best_index = cosines.clamp(0, 1).max(1)
    replacements = kept_index[best_index]
    mean_sine = float((1 - best.square()).clamp_min(0).sqrt().mean())
    return removed, replacements, best * norms[removed] / norms[replacements], mean_sine
