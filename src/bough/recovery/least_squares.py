"""Ridge least squares from running sums, in float64, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.errors import PlanError
from bough.importance.moments import TINY, rounding


@dataclass(frozen=True, slots=True)
class Solution:
    """y ~ x w + shift. w: [blocks, d, outputs]; shift: [blocks, outputs], 0 where no constant can be added.

    `before`, `after`: E|y - x w - shift|^2 as a share of E|y - E y|^2 (of E|y|^2 where no constant can be added, or y does not
    vary; not a share where y is 0). A block of which there are no rows is as it was.
    """

    weight: Tensor
    shift: Tensor
    before: float
    after: float
    rows: int  # of the block with the fewest


class Sums:
    """What rows x [N, d] and y [N, outputs] of each block add up to; memory is that of d x (d + outputs), whatever N."""

    def __init__(self) -> None:
        self._products: Tensor | None = None  # [blocks, d + outputs + 1, d + 1]: sums of [x y 1]^T [x 1]
        self._squares: Tensor | None = None  # [blocks, outputs]: of y^2
        self._rows: list[int] = []

    def add(
        self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | None = None
    ) -> None:  # fmt: skip
        """Adds the rows of one batch, each as often as its weight says (once without weights [N])."""
        each = list(weights) if weights is not None else [torch.ones(len(a), device=a.device) for a in x]
        parts = [_products(a, b, w) for a, b, w in zip(x, y, each, strict=True)]
        products, squares = (torch.stack(p) for p in zip(*parts, strict=True))
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(parts), strict=True)]
        self._products = products if self._products is None else self._products + products
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def rows(self) -> int:
        """Of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shift: Tensor, *, free: bool, ridge: float) -> Solution:
        """The w (and, where `free`, the shift) of least E|y - x w - shift|^2 + ridge mean(diag H) |w - weight|^2.

        H is E[x x^T], of x - E[x] where the shift is free; with ridge = 0 what the data leaves open stays as in `weight`.
        """
        assert self._products is not None
        assert self._squares is not None
        n = self._products[:, -1:, -1:]
        none = n == 0
        n = torch.where(none, 1.0, n)
        means, d = self._products / n, self._products.shape[-1] - 1
        second, cross, squares = means[:, :d, :d], means[:, d:-1, :d].mT, self._squares / n[:, 0]
        x, y = means[:, :d, -1], means[:, d:-1, -1]
        if not all(t.isfinite().all() for t in (second, cross, squares)):
            raise PlanError("not finite: the model gives NaN or infinity on this data")
        start, power = weight.double(), squares.sum()
        if free:
            second, cross = second - x[:, :, None] * x[:, None, :], cross - x[:, :, None] * y[:, None, :]
            squares = squares - y.square()
        new = start + torch.where(none, 0.0, _solved(second, cross - second @ start, ridge, means[:, :d, :d]))
        if not new.isfinite().all():
            raise PlanError("not finite: least squares has no solution on this data")
        moved = torch.where(none[:, 0], shift, y - (x[:, None] @ new)[:, 0]) if free else torch.zeros_like(y)
        off = torch.where(none[:, 0], 0.0, y - (x[:, None] @ start)[:, 0] - shift).square().sum() if free else 0.0
        scale = next((s for s in (squares.sum(), power) if s > 1e-30 * power), torch.ones_like(power))
        before, after = ((_error(second, cross, squares, w) + e) / scale for w, e in ((start, off), (new, 0.0)))
        return Solution(new, moved, float(before.clamp_min(0)), float(after.clamp_min(0)), min(self._rows))


def _products(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.double(), y.double()
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    root = weight.double().sqrt()[:, None]
    x, y = x * root, y * root
    return torch.cat([x[:, :-1], y, x[:, -1:]], 1).mT @ x, y.square().sum(0)


def _error(second: Tensor, cross: Tensor, squares: Tensor, w: Tensor) -> Tensor:
    return squares.sum() - 2 * (w * cross).sum() + (w * (second @ w)).sum()


def _solved(second: Tensor, cross: Tensor, ridge: float, raw: Tensor) -> Tensor:
    """`raw`: the moments before means were subtracted, which tell how much of `second` may be rounding."""
    scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    if ridge == 0:  # the pseudo-inverse: nothing along what the data does not vary in
        values, vectors = torch.linalg.eigh(second)
        largest = values[:, -1:].clamp_min(0) * second.shape[-1] * torch.finfo(second.dtype).eps
        small = values <= torch.maximum(largest, rounding(raw)[:, 0])
        return vectors @ (torch.where(small, 0.0, 1 / values)[:, :, None] * (vectors.mT @ cross))
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    damped = second + torch.maximum(ridge * scale, rounding(raw) + TINY) * eye
    return torch.linalg.solve(damped, cross)
