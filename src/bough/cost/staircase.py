"""Times on a grid of widths, and between its points: stairs as wide as hardware works on at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bough.errors import PlanError

Widths = tuple[int, ...]


def stair(width: int, quantum: int) -> int:
    """The step in which widths up to `width` count: of a few units (heads, groups) each one does."""
    return quantum if width >= 4 * quantum else 1


class Grid:
    """Times at all combinations of some widths per letter, made monotone: more units never take less time.

    Noise is taken out by the mean of the closest monotone bounds from above and from below.

    Raises:
        PlanError: a combination is missing.
    """

    def __init__(self, points: Mapping[Widths, float], what: str) -> None:
        self.axes = [sorted(set(a)) for a in zip(*points, strict=True)]
        missing = [w for w in product(*self.axes) if w not in points]
        if missing:
            raise PlanError(f"the table has no time at {'x'.join(map(str, missing[0]))} of {what}: it is not complete")
        times = np.array([points[w] for w in product(*self.axes)]).reshape([len(a) for a in self.axes])
        above, below = times, times
        for axis in range(times.ndim):
            above = np.maximum.accumulate(above, axis=axis)
            below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
        self.times: NDArray[np.float64] = (above + below) / 2


class Staircases:
    """Several grids, looked up at once.

    A width counts as the next multiple of its `stair`; between the points of its grid the time is interpolated linearly in
    each letter. Below the least width it is that of the least, above the largest that of the largest.
    """

    def __init__(self, grids: Sequence[Grid], quantum: int) -> None:
        letters = max((len(g.axes) for g in grids), default=0)
        longest = max((len(a) for g in grids for a in g.axes), default=1)
        self._widths = np.full((len(grids), letters, longest), np.inf)
        self._widths[:, :, :1] = 1.0
        self._last = np.zeros((len(grids), letters), dtype=np.int64)  # place of the last width
        self._stairs = np.ones((len(grids), letters))
        self._strides = np.zeros((len(grids), letters), dtype=np.int64)
        self._starts = np.cumsum([0, *(g.times.size for g in grids)])[:-1]
        self._times = np.concatenate([g.times.ravel() for g in grids]) if grids else np.zeros(0)
        for i, g in enumerate(grids):
            for j, axis in enumerate(g.axes):
                self._widths[i, j, : len(axis)] = axis
                self._last[i, j] = len(axis) - 1
                self._stairs[i, j] = stair(axis[-1], quantum)
                self._strides[i, j] = int(np.prod(g.times.shape[j + 1 :]))

    def __call__(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times [grids, plans] at widths [grids, letters, plans] (of letters that a grid has not, any)."""
        grids, letters, plans = widths.shape
        total = np.repeat(self._starts[:, None], plans, axis=1)
        corners: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = [(total, np.ones((grids, plans)))]
        rows = np.arange(grids)[:, None]
        for j in range(letters):
            known, last = self._widths[:, j], self._last[:, j, None]
            top = known[rows[:, 0], last[:, 0]][:, None]
            step = self._stairs[:, j, None]
            wide = np.minimum(np.ceil(widths[:, j] / step) * step, top)
            low = np.clip((known[:, :, None] <= wide[:, None, :]).sum(axis=1) - 1, 0, last)
            high = np.minimum(low + 1, last)
            start, end = known[rows, low], known[rows, high]
            share = np.zeros_like(wide)
            np.divide(wide - start, end - start, out=share, where=high > low)
            share = np.clip(share, 0.0, 1.0)
            stride = self._strides[:, j, None]
            corners = [
                (place + at * stride, weight * part)
                for place, weight in corners
                for at, part in ((low, 1.0 - share), (high, share))
            ]
        return sum((self._times[place] * weight for place, weight in corners), np.zeros((grids, plans)))
