"""Measured times on a grid of widths, and interpolation between the points of the grid.

Hardware works on several units at once (a vector register, a warp, a tile), so latency as a function of a width is a
staircase: each width is rounded up to the next multiple of the step before it is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bough.errors import PlanError

Widths = tuple[int, ...]


def width_step(width: int, quantum: int) -> int:
    """Return the step to which widths up to `width` are rounded: 1 for narrow axes such as heads, else `quantum`."""
    return quantum if width >= 4 * quantum else 1


class Grid:
    """Times at all combinations of some widths per letter, made monotone: more units never take less time.

    Measurement noise is reduced by averaging the closest monotone bounds from above and from below.

    Raises:
        PlanError: the time of a combination is missing.
    """

    def __init__(self, points: Mapping[Widths, float], key: str) -> None:
        self.axes = [sorted(set(a)) for a in zip(*points, strict=True)]
        missing = [w for w in product(*self.axes) if w not in points]
        if missing:
            raise PlanError(f"the table has no time at {'x'.join(map(str, missing[0]))} of {key}: it is not complete")
        times = np.array([points[w] for w in product(*self.axes)]).reshape([len(a) for a in self.axes])
        upper, lower = times, times
        for axis in range(times.ndim):
            upper = np.maximum.accumulate(upper, axis=axis)
            lower = np.flip(np.minimum.accumulate(np.flip(lower, axis), axis=axis), axis)
        self.times: NDArray[np.float64] = (upper + lower) / 2


class GridLookup:
    """Several grids, evaluated together for many plans.

    A width is rounded up to a multiple of its `width_step`; between two points of the grid the time is interpolated
    linearly in each letter. Outside the grid the time is that of the nearest point.
    """

    def __init__(self, grids: Sequence[Grid], quantum: int) -> None:
        letters = max((len(g.axes) for g in grids), default=0)
        longest = max((len(a) for g in grids for a in g.axes), default=1)
        self._widths = np.full((len(grids), letters, longest), np.inf)
        self._widths[:, :, :1] = 1.0
        self._last = np.zeros((len(grids), letters), dtype=np.int64)  # position of the largest width
        self._steps = np.ones((len(grids), letters))
        self._strides = np.zeros((len(grids), letters), dtype=np.int64)
        self._starts = np.cumsum([0, *(g.times.size for g in grids)])[:-1]
        self._times = np.concatenate([g.times.ravel() for g in grids]) if grids else np.zeros(0)
        for i, g in enumerate(grids):
            for j, axis in enumerate(g.axes):
                self._widths[i, j, : len(axis)] = axis
                self._last[i, j] = len(axis) - 1
                self._steps[i, j] = width_step(axis[-1], quantum)
                self._strides[i, j] = int(np.prod(g.times.shape[j + 1 :]))

    def __call__(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return times [grids, plans] at widths [grids, letters, plans]; letters that a grid lacks are ignored."""
        grids, letters, plans = widths.shape
        origin = np.repeat(self._starts[:, None], plans, axis=1)
        corners: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = [(origin, np.ones((grids, plans)))]
        rows = np.arange(grids)[:, None]
        for j in range(letters):
            known, last = self._widths[:, j], self._last[:, j, None]
            largest = known[rows[:, 0], last[:, 0]][:, None]
            step = self._steps[:, j, None]
            rounded = np.minimum(np.ceil(widths[:, j] / step) * step, largest)
            low = np.clip((known[:, :, None] <= rounded[:, None, :]).sum(axis=1) - 1, 0, last)
            high = np.minimum(low + 1, last)
            start, end = known[rows, low], known[rows, high]
            fraction = np.zeros_like(rounded)
            np.divide(rounded - start, end - start, out=fraction, where=high > low)
            fraction = np.clip(fraction, 0.0, 1.0)
            stride = self._strides[:, j, None]
            corners = [
                (position + index * stride, weight * part)
                for position, weight in corners
                for index, part in ((low, 1.0 - fraction), (high, fraction))
            ]
        return sum((self._times[position] * weight for position, weight in corners), np.zeros((grids, plans)))
