"""Indices of a space by unit of an atom, and reductions over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bough.spaces.kept import coordinates
from bough.spaces.space import Atom, Space


def unit_positions(space: Space, atom: Atom) -> NDArray[np.int64]:
    """Return the indices of `space` that belong to each unit of `atom`: [units, positions], ascending in each row."""
    pairs = {(u, i) for units in coordinates(space, atom) for i, u in enumerate(units.tolist()) if u >= 0}
    return np.array(sorted(pairs), dtype=np.int64)[:, 1].reshape(atom.size, -1)


def unit_sums(space: Space, atom: Atom, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of `values` [size of the space] over the indices of each unit of `atom`: [units]."""
    total = np.zeros(atom.size)
    for units in coordinates(space, atom):
        belongs = units >= 0
        total += np.bincount(units[belongs], weights=values[belongs], minlength=atom.size)
    return total


def unit_means(space: Space, atom: Atom, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of `values` [size of the space] over the indices of each unit of `atom`: [units]."""
    return unit_sums(space, atom, values) / unit_sums(space, atom, np.ones(space.size))
