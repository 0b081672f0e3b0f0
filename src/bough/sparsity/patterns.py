"""N:M patterns: at most N non-zeros in each group of M adjacent input channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.sparsity.weight_matrices import WeightMatrix


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `n` non-zeros in each group of `m` adjacent indices."""

    n: int
    m: int

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Return the pattern that a text such as "2:4" names.

        Raises:
            PlanError: the text is no pattern.
        """
        first, colon, second = text.partition(":")
        if not colon or not (first.isdecimal() and second.isdecimal()) or not 0 < int(first) < int(second):
            raise PlanError(f"pattern={text!r}: write N:M with 0 < N < M, such as pattern='2:4' for 2 non-zeros of every 4")
        return cls(int(first), int(second))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def kept(self) -> float:
        """The share of elements that stay."""
        return self.n / self.m

    def obstacle(self, matrix: WeightMatrix) -> str:
        """Return why a matrix cannot have this pattern; "" if it can."""
        if matrix.channels % self.m:
            return f"{matrix.channels} input channels are no multiple of {self.m}, so the pattern {self} does not fit"
        return ""

    def grouped(self, values: Tensor, spread: int) -> Tensor:
        """Return a view [blocks, groups, m, spread, outputs] of [blocks, inputs, outputs]: groups along input channels."""
        blocks, inputs, outputs = values.shape
        return values.reshape(blocks, inputs // (self.m * spread), self.m, spread, outputs)

    def keep(self, scores: Tensor, spread: int) -> Tensor:
        """Return the mask of the `n` highest scores of each group: bool, like `scores` [blocks, inputs, outputs]."""
        order = self.grouped(scores, spread).argsort(dim=2, descending=True, stable=True)
        kept = torch.zeros(order.shape, dtype=torch.bool, device=scores.device)
        kept.scatter_(2, order[:, :, : self.n], True)
        return kept.reshape(scores.shape)


def follows_pattern(tensor: Tensor, pattern: str, dim: int = 1) -> bool:
    """Return whether a weight or a mask has at most N non-zeros in each group of M adjacent indices of a dim.

    Args:
        tensor: a weight, or a mask that is True where an element stays.
        pattern: such as "2:4": at most 2 non-zeros of every 4.
        dim: along which the groups lie; 1 is the input channels of linear layers and convolutions.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the text is no pattern, or the tensor has no such dim.

    Example:
        >>> import torch
        >>> follows_pattern(torch.tensor([[1.0, 0.0, 2.0, 0.0]]), "2:4"), follows_pattern(torch.ones(1, 4), "2:4")
        (True, False)
    """
    check_arguments(follows_pattern, locals())
    wanted = Pattern.of(pattern)
    if not -tensor.dim() <= dim < tensor.dim():
        raise PlanError(f"dim={dim}: the tensor has {tensor.dim()} dims")
    if tensor.shape[dim] % wanted.m:
        return False
    groups = (tensor != 0).movedim(dim, -1).reshape(-1, wanted.m)
    return bool((groups.sum(1) <= wanted.n).all())
