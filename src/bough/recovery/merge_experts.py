"""`merge_experts`: cut experts of mixtures, and average their weights into those of similar experts that stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calibration import Data, ExpertMeans, Mixture, as_data, expert_means, gated_norms, preserve_state, require_reiterable
from bough.cutting.check import check
from bough.cutting.cut import copied, cut
from bough.errors import PlanError
from bough.graph import Graph
from bough.importance import joined
from bough.planning import Plan
from bough.recovery.correspondence import kept_units
from bough.recovery.expert_neurons import ExpertNeurons
from bough.spaces import Each, indices
from bough.tracing import trace


@dataclass(frozen=True, slots=True)
class MergedExperts:
    """Result of `merge_experts`.

    Attributes:
        model: the cut model.
        clusters: for each mixture, by the name of its group of experts, {expert that stays: experts merged into it}.
        plan: by which the model was cut.
    """

    model: nn.Module
    clusters: dict[str, dict[int, list[int]]]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Return the clusters as plain data."""
        return {"clusters": {n: {str(k): v for k, v in c.items()} for n, c in self.clusters.items()}}

    def __str__(self) -> str:
        return "\n".join(f"merged: {name}: {_in_words(clusters)}" for name, clusters in self.clusters.items())

    __repr__ = __str__


def _in_words(clusters: dict[int, list[int]]) -> str:
    return "; ".join(f"{', '.join(map(str, others))} into {expert}" for expert, others in clusters.items() if others)


@torch.no_grad()
def merge_experts(graph: Graph, plan: Plan, data: Data | Iterable[Any]) -> MergedExperts:
    """Return a cut copy of the graph's model in which the experts that stay are averages of clusters of experts.

    Experts are clustered by their mean outputs on the data (average linkage), one cluster for each expert that the plan keeps.
    Each of them sees all rows that are routed to any: a batch runs once for each expert.
    The weights and biases of an expert u that stays become the mean over its cluster C, weighted by the number of rows that are
    routed to each: W_u = sum over v in C of n_v P_v W_v / sum over v in C of n_v. P_v permutes the neurons of v so that
    they match those of u, which changes no output of v; neurons that are most alike by the inner product of their weights are
    matched first. The gate keeps the rows of the experts that stay. Experts that no row is routed to count nothing.

    Equal experts are merged into what each of them was. `refit` of the merged model would fit experts to the dense model's
    again, and undo the averages; `finetune` and `distill` go on from them.

    Source: Chen et al., 2024 (HC-SMoE: clusters, weights by frequency); Li et al., 2024 (MC-SMoE: matching of neurons).

    Args:
        graph: of the model, which stays as it is.
        plan: made for this model; with scores of "expert_clusters", the clusters are those of hierarchical clustering.
        data: batches, as for `score`, that can be gone through again.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the plan cuts no experts, or was made for another model or other weights; the run does not tell the
            experts apart; or as `Data.stream`.

    Example:
        >>> import torch, bough
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate = torch.nn.Linear(4, 3)
        ...         self.up, self.down = (torch.nn.Parameter(torch.randn(3, *shape)) for shape in ((4, 8), (8, 4)))
        ...     def forward(self, x):
        ...         outputs = torch.relu(x @ self.up) @ self.down  # [experts, tokens, width]
        ...         return torch.einsum("be,ebd->bd", self.gate(x).softmax(-1), outputs)
        >>> graph, data = bough.trace(Mixture(), torch.randn(2, 4)), [torch.randn(16, 4)]
        >>> experts = graph.groups[0].name
        >>> plan = bough.plan(graph, bough.score(graph, "expert_clusters", data), keep={experts: 2})
        >>> merged = merge_experts(graph, plan, data)
        >>> merged.model.up.shape, sum(map(len, merged.clusters[experts].values()))
        (torch.Size([2, 4, 8]), 1)
    """
    check_arguments(merge_experts, locals())
    check(graph.model, plan)
    with preserve_state(graph.model):
        graph = trace(graph.model, graph.calls)  # neurons are matched also where `ignore` or `only` keeps all of them
    kept = kept_units(graph, plan)
    clusters: dict[str, dict[int, list[int]]] = {}
    averages: dict[str, _Averages] = {}
    batches = as_data(data)
    require_reiterable(batches)
    routed = gated_norms(graph, batches, "merge_experts rows")
    for found, norms in zip(expert_means(graph, batches, "merge_experts outputs"), routed, strict=True):
        space = found.mixture.space
        cut_atoms = [a for a in space.atoms if a in kept]
        if not cut_atoms:
            continue
        name = next(g.name for g in graph.groups if g.atom is cut_atoms[0])
        if any(isinstance(kept[a], Each) for a in cut_atoms):
            raise PlanError(f"the experts of {name!r} differ for each unit of another group, and can not be merged")
        clusters[name] = _clusters(found, norms.rows, indices(space, kept))
        average = _Averages(found.mixture, norms.rows, clusters[name], ExpertNeurons(graph, found.mixture))
        averages.update((parameter, average) for parameter, _ in found.mixture.parameters)
    if not clusters:
        raise PlanError("the plan cuts no experts, so there are none to merge: use bough.cut")

    def change(name: str, tensor: Tensor, parameter: bool) -> Tensor:
        value = tensor.clone()
        if name in averages:
            averages[name].write(name, value)
        return value

    return MergedExperts(cut(copied(graph.model, change)[0], plan), clusters, plan)


def _clusters(found: ExpertMeans, rows: NDArray[np.float64], kept: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return the experts that are merged into each expert that stays."""
    into = {absorbed: absorbing for absorbed, absorbing, _ in joined(found.means, rows, kept.tolist())}
    clusters: dict[int, list[int]] = {expert: [] for expert in kept.tolist()}
    for expert in sorted(into):
        target = into[expert]
        while target in into:
            target = into[target]
        clusters[target].append(expert)
    return clusters


@dataclass(frozen=True, slots=True)
class _Averages:
    """The averages of the clusters of one mixture."""

    mixture: Mixture
    rows: NDArray[np.float64]
    clusters: dict[int, list[int]]
    neurons: ExpertNeurons

    def write(self, name: str, value: Tensor) -> None:
        """Write the averages of one parameter of the experts to a copy of it."""
        dim = dict(self.mixture.parameters)[name]
        for expert, others in self.clusters.items():
            members = [expert, *others]
            rows = self.rows[members]
            if not rows[1:].any():
                continue
            target = value.select(dim, expert)
            total = torch.zeros(target.shape, dtype=torch.float64, device=target.device)
            for member, share in zip(members, rows / rows.sum(), strict=True):
                total += share * self.neurons.matched(name, member, expert).double()
            target.copy_(total)
