"""Neurons of experts: which neuron of one expert does what a neuron of another expert does, by their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bough.calibration import Mixture
from bough.graph import Graph, Group
from bough.spaces import normal, unit_positions


class ExpertNeurons:
    """The inner neurons of the experts of a mixture: those that occur in the experts' own parameters alone.

    Their order within an expert is of no consequence, so that the neurons of one expert can be matched with those of another.

    Args:
        graph: of the model.
        mixture: the experts.
    """

    def __init__(self, graph: Graph, mixture: Mixture) -> None:
        self._graph = graph
        self._dims: Mapping[str, int] = dict(mixture.parameters)
        self._groups = [g for g in graph.groups if all(m.dim != self._dims.get(m.name, m.dim) for m in g.members)]
        self._orders: dict[tuple[str, int, int], Tensor] = {}

    def matched(self, name: str, expert: int, target: int) -> Tensor:
        """Return a parameter of `expert`, without the dim of the experts, with its neurons in the order of those of `target`.

        Args:
            name: of one of the mixture's parameters.
            expert, target: numbers of experts.
        """
        values = self._of(name, expert)
        for group in self._groups if expert != target else ():
            for member in group.members:
                if member.name == name:
                    positions, dim = self._positions(group, name, member.dim), self._dim(name, member.dim)
                    order = torch.arange(values.shape[dim])
                    order[positions] = positions[self._order(group, expert, target)]
                    values = values.index_select(dim, order.to(values.device))
        return values

    def _of(self, name: str, expert: int) -> Tensor:
        return self._graph.tensor(name).detach().select(self._dims[name], expert)

    def _dim(self, name: str, dim: int) -> int:
        """Return the number of a dim of a parameter once that of the experts is gone."""
        return dim - (dim > self._dims[name])

    def _positions(self, group: Group, name: str, dim: int) -> Tensor:
        return torch.from_numpy(unit_positions(normal(self._graph.states[name].axes[dim]), group.atom))

    def _order(self, group: Group, expert: int, target: int) -> Tensor:
        """Return, for each neuron of `target`, the neuron of `expert` that is matched with it."""
        key = group.name, expert, target
        if key not in self._orders:
            self._orders[key] = best_pairs(self._vectors(group, target) @ self._vectors(group, expert).mT)
        return self._orders[key]

    def _vectors(self, group: Group, expert: int) -> Tensor:
        """Return all weights of each neuron of an expert, float32 [neurons, weights]."""
        vectors = []
        for member in group.members:
            rows = self._of(member.name, expert).movedim(self._dim(member.name, member.dim), 0)
            vectors.append(rows[self._positions(group, member.name, member.dim)].reshape(group.size, -1).float().cpu())
        return torch.cat(vectors, 1)


def best_pairs(similarity: Tensor) -> Tensor:
    """Return the column matched with each row of a square matrix [n, n]; pairs of the highest values are matched first.

    Example:
        >>> best_pairs(torch.tensor([[5.0, 4.0], [4.0, 0.0]]))
        tensor([0, 1])
    """
    left = similarity.clone()
    columns = torch.full((len(left),), -1, dtype=torch.long)
    while (columns < 0).any():
        best = left.argmax(1)
        rows = torch.arange(len(left))
        mutual = (left.argmax(0)[best] == rows) & (columns < 0)
        columns[mutual] = best[mutual]
        left[mutual] = -torch.inf
        left[:, best[mutual]] = -torch.inf
    return columns
