"""Where the values of a model's tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class WeightSource(Protocol):
    """Where the values of a model's tensors are read from, if the model itself has none."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return the values of a parameter or buffer."""
        ...

    def reduce(
        self, name: str, dims: Sequence[int], reduction: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> dict[int, torch.Tensor]:  # fmt: skip
        """Return `reduction(self.tensor(name), dim)` for each of several dims: {dim: [size of dim]}."""
        ...
