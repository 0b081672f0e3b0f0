"""How a logical tensor lies in memory: which dimension stands at each position, and what a reshape makes of that."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = tuple[int, ...]


def row_major(rank: int) -> Shape:
    """Return the order of a tensor that lies in memory as PyTorch has it."""
    return tuple(range(rank))


def channels_last(rank: int) -> Shape:
    """Return the order with dimension 1 innermost."""
    return (0, *range(2, rank), 1)


def same_memory(order: Shape, other: Shape, shape: Shape) -> bool:
    """Tell whether two orders put a tensor of this logical shape into memory alike; dimensions of size 1 do not count."""
    return [d for d in order if shape[d] != 1] == [d for d in other if shape[d] != 1]


def permuted(order: Shape, dims: Sequence[int]) -> Shape:
    """Return the order of the same memory after a permutation of the logical dimensions."""
    return tuple(list(dims).index(d) for d in order)


def strides(order: Shape, shape: Shape) -> Shape:
    """Return the stride in elements of each logical dimension.

    Example:
        >>> strides((0, 2, 3, 1), (1, 8, 4, 5))
        (160, 1, 40, 8)
    """
    result, step = [0] * len(shape), 1
    for d in reversed(order):
        result[d] = step
        step *= shape[d]
    return tuple(result)


def reshaped(order: Shape, old: Shape, new: Shape) -> Shape | None:
    """Return the order of the same memory seen as another shape; None if the elements would have to move.

    Example:
        >>> reshaped((0, 2, 3, 1), (1, 8, 4, 5), (1, 8, 20))
        (0, 2, 1)
    """
    groups = _groups([s for s in old if s != 1], [s for s in new if s != 1])
    old_dims = [d for d, s in enumerate(old) if s != 1]
    new_dims = [d for d, s in enumerate(new) if s != 1]
    memory = [old_dims.index(d) for d in order if old[d] != 1]
    result: list[int] = []
    at = 0
    while at < len(memory):
        olds, news = next(g for g in groups if memory[at] in g[0])
        if memory[at : at + len(olds)] != list(olds):
            return None
        result += [new_dims[i] for i in news]
        at += len(olds)
    ones = [d for d, s in enumerate(new) if s == 1]
    return (*ones, *result)


def _groups(old: list[int], new: list[int]) -> list[tuple[range, range]]:
    """Return the smallest runs of dimensions of both shapes that hold the same number of elements."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = i + 1, j + 1
        while math.prod(old[first:i]) != math.prod(new[second:j]):
            if math.prod(old[first:i]) < math.prod(new[second:j]):
                i += 1
            else:
                j += 1
        found.append((range(first, i), range(second, j)))
    return found
