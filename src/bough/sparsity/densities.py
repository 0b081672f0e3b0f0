"""How many elements each weight keeps: functions `(matrices, kept elements in all, scores) -> kept elements of each`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, prod

import torch
from torch import Tensor

from bough.errors import PlanError
from bough.sparsity.weight_matrices import WeightMatrix

Scores = Sequence[Tensor]
"""Scores of each matrix, [blocks, inputs, outputs]; the lowest are removed first."""

Allocate = Callable[[Sequence[WeightMatrix], int, Scores], list[int]]


def uniform(matrices: Sequence[WeightMatrix], total: int, scores: Scores) -> list[int]:
    """Return the same share of each weight."""
    share = total / sum(m.size for m in matrices)
    return rounded([share * m.size for m in matrices], total, [m.size for m in matrices])


def of_all(matrices: Sequence[WeightMatrix], total: int, scores: Scores) -> list[int]:
    """Return how many of the `total` highest scores of all weights together belong to each."""
    order = torch.cat([s.flatten().cpu() for s in scores]).argsort(descending=True, stable=True)[:total]
    ends = torch.tensor([m.size for m in matrices]).cumsum(0)
    return torch.bincount(torch.searchsorted(ends, order, right=True), minlength=len(matrices)).tolist()


def erk(matrices: Sequence[WeightMatrix], total: int, scores: Scores) -> list[int]:
    """Return shares in proportion to (sum of dims) / (product of dims): Erdos-Renyi-Kernel.

    Weights whose share would be above 1 stay dense, and the others take what is left.

    Source: Mocanu et al., 2018; Evci et al., 2020 (RigL).
    """
    sizes = [m.size for m in matrices]
    raw = [sum(_dims(m)) / prod(_dims(m)) for m in matrices]
    dense: set[int] = set()
    while True:
        open_to = [i for i in range(len(matrices)) if i not in dense]
        if not open_to:
            return sizes
        left = total - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in open_to)
        full = {i for i in open_to if scale * raw[i] > 1}
        if not full:
            return rounded([sizes[i] if i in dense else scale * raw[i] * sizes[i] for i in range(len(sizes))], total, sizes)
        dense |= full


ALLOCATIONS: dict[str, Allocate] = {"uniform": uniform, "global": of_all, "erk": erk}


def allocation_named(name: str) -> Allocate:
    """Return an allocation by its name.

    Raises:
        PlanError: there is none of this name.
    """
    if name not in ALLOCATIONS:
        raise PlanError(f"allocation={name!r} is unknown: use one of {', '.join(map(repr, ALLOCATIONS))}")
    return ALLOCATIONS[name]


def rounded(counts: Sequence[float], total: int, sizes: Sequence[int]) -> list[int]:
    """Return whole numbers next to `counts` whose sum is `total`, none above its size; the largest remainders round up."""
    low = [min(size, floor(c + 1e-9)) for c, size in zip(counts, sizes, strict=True)]
    order = sorted((i for i in range(len(low)) if low[i] < sizes[i]), key=lambda i: low[i] - counts[i])
    for i in order[: total - sum(low)]:
        low[i] += 1
    return low


def _dims(matrix: WeightMatrix) -> tuple[int, ...]:
    blocks, _, outputs = matrix.positions.shape
    return (matrix.channels, blocks * outputs, *matrix.kernel)
