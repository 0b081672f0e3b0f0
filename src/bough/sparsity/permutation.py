"""Channel permutation: an order of units in which an N:M pattern keeps more magnitude.

The units of a group are permuted in all its members (the weights that compute, scale, normalize and consume them), so the model
computes the same. The permutation of one group changes which inputs of its consumers share a group of M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import preserve_state
from bough.graph import Graph, Group
from bough.measuring import largest_error
from bough.spaces import normal, unit_positions
from bough.sparsity.patterns import Pattern
from bough.sparsity.weight_matrices import WeightMatrix
from bough.tracing.capture.tree import tensors_within

_COLUMNS = 512  # of the consumers' weights that the search compares, drawn at random if there are more
_TOLERANCE = 1e-3  # of outputs before and after, relative to the largest


@dataclass(frozen=True, slots=True)
class Permuted:
    """What permutations have gained.

    Attributes:
        groups: for each permuted group, the share of its consumers' magnitude that the pattern keeps before and after.
        skipped: groups that were not permuted, with the reason.
    """

    groups: dict[str, tuple[float, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"groups": {n: list(v) for n, v in self.groups.items()}, "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        lines = [f"permuted: {n}: keeps {a:.2%} of the magnitude, before {b:.2%}" for n, (b, a) in self.groups.items()]
        return "\n".join([*lines, *(f"not permuted: {n}: {why}" for n, why in self.skipped.items())])


def permute_channels_(graph: Graph, matrices: Sequence[WeightMatrix], pattern: Pattern) -> Permuted:
    """Permute the units of each group in place, by greedy swaps, to keep more magnitude under a pattern.

    Source: Pool and Yu, 2021 (channel permutations for N:M sparsity): the objective; the search swaps the best pair until no
    swap helps.

    Args:
        graph: of the model that is changed; its function stays, which is checked on the example inputs.
        matrices: the weights that will be sparse.
        pattern: N:M.
    """
    result = Permuted()
    for group in graph.groups:
        rows = _consumer_rows(graph, group, matrices, pattern)
        if rows is None:
            continue
        order = best_order(rows, pattern)
        before, after = (kept_magnitude(r, pattern) / float(rows.sum() or 1) for r in (rows, rows[order]))
        if after <= before:
            continue
        reference = _outputs(graph)
        _permute_(graph, group, order)
        if largest_error(reference, _outputs(graph)) > _TOLERANCE:
            _permute_(graph, group, order.argsort())
            result.skipped[group.name] = "the outputs change: the model's code depends on the order of these units"
        else:
            result.groups[group.name] = before, after
    return result


def kept_magnitude(rows: Tensor, pattern: Pattern) -> float:
    """Return the sum of what a pattern keeps of rows [units, columns], in groups of adjacent units."""
    return float(rows.view(-1, pattern.m, rows.shape[1]).topk(pattern.n, dim=1).values.sum())


def best_order(rows: Tensor, pattern: Pattern, seed: int = 0) -> Tensor:
    """Return an order of units in which a pattern keeps more: int64 [units].

    Args:
        rows: magnitudes, [units, columns].
        pattern: N:M.
        seed: of the columns that are drawn if there are more than the search compares.
    """
    if rows.shape[1] > _COLUMNS:
        drawn = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))[:_COLUMNS]
        rows = rows[:, drawn.to(rows.device)]
    units = len(rows)
    order = torch.arange(units)
    stripe = torch.arange(units) // pattern.m
    current = rows.view(-1, pattern.m, rows.shape[1]).topk(pattern.n, dim=1).values.sum((1, 2))
    table = torch.cat([_replaced(rows, order[stripe == s], rows, pattern) for s in range(units // pattern.m)])
    apart = stripe[:, None] != stripe[None, :]
    for _ in range(4 * units):
        at_slots = table[:, order]  # [slot, slot]: what the stripe of the first keeps with the unit of the second in its slot
        gain = torch.where(apart, at_slots + at_slots.T - current[stripe][:, None] - current[stripe][None, :], -1.0)
        best = int(gain.argmax())
        if float(gain.flatten()[best]) <= 1e-9 * float(current.sum()):
            break
        a, b = divmod(best, units)
        order[[a, b]] = order[[b, a]]
        for s in {int(stripe[a]), int(stripe[b])}:
            members = order[stripe == s]
            current[s] = rows[members].topk(pattern.n, dim=0).values.sum()
            table[stripe == s] = _replaced(rows, members, rows, pattern)
    return order


def _replaced(rows: Tensor, members: Tensor, candidates: Tensor, pattern: Pattern) -> Tensor:
    """Return what a group keeps if one member is replaced by each candidate: [members, candidates].

    The n largest of the others and v sum to the n - 1 largest of the others, plus the larger of v and the n-th.
    """
    values = []
    for i in range(len(members)):
        others = rows[torch.cat([members[:i], members[i + 1 :]])].sort(dim=0, descending=True).values
        last = others[pattern.n - 1]
        larger = (last.sum() + candidates.sum(1) + torch.cdist(last[None], candidates, p=1.0)[0]) / 2
        values.append(others[: pattern.n - 1].sum() + larger)
    return torch.stack(values)


def _consumer_rows(graph: Graph, group: Group, matrices: Sequence[WeightMatrix], pattern: Pattern) -> Tensor | None:
    """Return the magnitudes that multiply each unit in consumers whose groups of M are adjacent units: [units, columns]."""
    rows = []
    for matrix in matrices:
        space = matrix.axes[0].space(graph)
        if group.atom not in normal(space).atoms or group.size % pattern.m:
            continue
        positions = unit_positions(space, group.atom)
        first = positions[np.arange(group.size) // pattern.m * pattern.m]
        if (positions - first != (np.arange(group.size) % pattern.m)[:, None]).any():
            continue
        by_channel = _by_channel(matrix, matrix.gather(graph.tensor(matrix.name)).double().abs(), space.size)
        rows.append(by_channel[torch.from_numpy(positions)].flatten(1))
    return torch.cat([r.cpu() for r in rows], 1) if rows else None


def _by_channel(matrix: WeightMatrix, values: Tensor, size: int) -> Tensor:
    """Return [blocks, inputs, outputs] with the contracted axis first: [size, other elements]."""
    blocks, _, outputs = values.shape
    split = values.view(blocks, matrix.channels, matrix.spread, outputs)
    return (split if size == blocks * matrix.channels else split.transpose(0, 1)).reshape(size, -1)


@torch.no_grad()
def _permute_(graph: Graph, group: Group, order: Tensor) -> None:
    """Put unit order[i] in the place of unit i, in all members."""
    for member in group.members:
        tensor = graph.tensor(member.name)
        positions: NDArray[np.int64] = unit_positions(graph.states[member.name].axes[member.dim], group.atom)
        index = np.arange(tensor.shape[member.dim])
        index[positions.flatten()] = positions[order.numpy()].flatten()
        tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(index).to(tensor.device)))


def _outputs(graph: Graph) -> dict[str, Tensor]:
    """Return the outputs of the first call on the example inputs, by number."""
    with torch.no_grad(), preserve_state(graph.model, graph.written):
        return {str(i): t.detach().clone() for i, t in enumerate(tensors_within(graph.call(graph.model)))}
