"""Non-dominated points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto(losses: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, in their order; of equal points the first.

    Args:
        losses: [points, objectives]; smaller is better.

    Example:
        >>> pareto([(0.0, 2.0), (1.0, 1.0), (1.0, 3.0), (0.0, 2.0)])
        [0, 1]
    """
    if not len(losses):
        return []
    x = np.asarray(losses, dtype=np.float64)
    no_worse = (x[:, None] <= x[None]).all(axis=2)  # [i, j]: point i is nowhere worse than point j
    better = (x[:, None] < x[None]).any(axis=2)
    equal_before = np.triu(no_worse & no_worse.T, k=1)
    dominated = (no_worse & better).any(axis=0) | equal_before.any(axis=0)
    return [int(i) for i in np.flatnonzero(~dominated)]
