"""Lists of indices that share memory: a plan of a large model has thousands of them, most of them equal to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class IndexLists:
    """Makes lists of integers of arrays: equal arrays give the same list, and equal integers are the same object.

    A separate integer object takes 28 bytes beside the list's 8: of a model with 405 billion parameters, the lists of a plan
    would take more than a gigabyte.
    """

    def __init__(self) -> None:
        self._lists: dict[bytes, list[int]] = {}
        self._integers = np.arange(0, dtype=object)

    def __call__(self, indices: NDArray[np.int64]) -> list[int]:
        """Return a list of indices, which are not negative."""
        key = indices.tobytes()
        if key not in self._lists:
            size = int(indices.max(initial=-1)) + 1
            if size > len(self._integers):
                self._integers = np.arange(2 * size, dtype=object)
            self._lists[key] = self._integers[indices].tolist()
        return self._lists[key]
