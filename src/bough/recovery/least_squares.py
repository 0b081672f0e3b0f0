"""Ridge least squares from running sums, in float64, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.errors import PlanError
from bough.importance.moments import TINY, rounding


@dataclass(frozen=True, slots=True)
class Solution:
    """y ~ x w + shift. w: [blocks, d, outputs]; shifts: by name, [blocks, outputs].

    `before`, `after`: E|y - x w - shift|^2 as a share of E|y - E y|^2 (of E|y|^2 where no constant can be added, or y does not
    vary; not a share where y is 0). A block of which there are no rows is as it was.
    """

    weight: Tensor
    shifts: dict[str, Tensor]
    before: float
    after: float
    rows: int  # of the block with the fewest


class Sums:
    """What rows x [N, d] and y [N, outputs] of each block add up to; memory is that of d x (d + outputs), whatever N.

    Rows of one w may have different constants, as where a layer runs under several batch norms: these are told by name.
    """

    def __init__(self) -> None:
        # for each constant, [blocks, d + outputs + 1, d + 1]: sums of [x y 1]^T [x 1]; and [blocks, outputs]: of y^2
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows: list[int] = []

    def add(
        self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | None = None,
        shift: str = "",
    ) -> None:  # fmt: skip
        """Adds the rows of one batch, each as often as its weight says (once without weights [N]), to which the constant
        called `shift` can be added; none where that is ""."""
        each = list(weights) if weights is not None else [torch.ones(len(a), device=a.device) for a in x]
        parts = [_products(a, b, w) for a, b, w in zip(x, y, each, strict=True)]
        products, squares = (torch.stack(p) for p in zip(*parts, strict=True))
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(parts), strict=True)]
        if shift in self._parts:
            before = self._parts[shift]
            products, squares = products + before[0], squares + before[1]
        self._parts[shift] = products, squares

    @property
    def rows(self) -> int:
        """Of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shifts: Mapping[str, Tensor], *, ridge: float) -> Solution:
        """The w, and the constants `shifts`, of least E|y - x w - shift|^2 + ridge mean(diag H) |w - weight|^2.

        H is E[x x^T], of x - E[x] where there is a constant; with ridge = 0 what the data leaves open stays as in `weight`.
        """
        total = sum((products[:, -1:, -1:] for products, _ in self._parts.values()), torch.zeros(()))
        none = total == 0
        parts = [_part(*part, torch.where(none, 1.0, total), name) for name, part in self._parts.items()]
        raw, second, cross, squares, power = (sum(terms[1:], terms[0]) for terms in zip(*(p.terms for p in parts), strict=True))
        if not all(t.isfinite().all() for t in (second, cross, squares)):
            raise PlanError("not finite: the model gives NaN or infinity on this data")
        start = weight.double()
        new = start + torch.where(none, 0.0, _solved(second, cross - second @ start, ridge, raw))
        if not new.isfinite().all():
            raise PlanError("not finite: least squares has no solution on this data")
        free = [p for p in parts if p.name]
        moved = {p.name: torch.where(p.share == 0, shifts[p.name], p.constant(new)) for p in free}
        off = sum((p.share * (p.constant(start) - shifts[p.name]).square()).sum() for p in free)
        scale = next((s for s in (squares.sum(), power) if s > 1e-30 * power), torch.ones_like(power))
        before, after = ((_error(second, cross, squares, w) + e) / scale for w, e in ((start, off), (new, 0.0)))
        return Solution(new, moved, float(before.clamp_min(0)), float(after.clamp_min(0)), min(self._rows))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one constant: their share of all [blocks, 1], their means, and what they add to the moments of all."""

    name: str
    share: Tensor
    x: Tensor
    y: Tensor
    terms: tuple[Tensor, ...]  # E[x x^T], the same and E[x y^T] and E[y^2] around the means that are free, all of E[y^2]

    def constant(self, w: Tensor) -> Tensor:
        """The best one beside w."""
        return self.y - (self.x[:, None] @ w)[:, 0]


def _part(products: Tensor, squares: Tensor, total: Tensor, name: str) -> _Part:
    d, own = products.shape[-1] - 1, products[:, -1:, -1]
    x, y = (m / torch.where(own == 0, 1.0, own) for m in (products[:, :d, -1], products[:, d:-1, -1]))
    share, powers = own / total[:, 0], squares / total[:, 0]
    raw, cross = products[:, :d, :d] / total, products[:, d:-1, :d].mT / total
    second, power = raw, powers.sum()
    if name:
        among = share[:, :, None] * x[:, :, None]
        second, cross, powers = raw - among * x[:, None, :], cross - among * y[:, None, :], powers - share * y.square()
    return _Part(name, share, x, y, (raw, second, cross, powers, power))


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
