"""Ridge least squares from running sums, in float64, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.calibration import TINY, rounding_floor
from bough.errors import PlanError

STRENGTHS = tuple(10.0**k for k in range(-3, 3))
"""The ridges that one is chosen from."""

QUARTERS = 4

_ByConstant = dict[str, tuple[Tensor, Tensor]]
"""For each constant, sums of [x y 1]^T [x 1], [blocks, d + outputs + 1, d + 1], and of y^2, [blocks, outputs]."""

_AS_GOOD = 1.05  # an error that is no more than this times the least one


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
    ridge: float


class Sums:
    """What rows x [N, d] and y [N, outputs] of each block add up to; memory is that of d x (d + outputs), whatever N, for
    each quarter of the data that is told apart.

    Rows of one w may have different constants, as where a layer runs under several batch norms: these are told by name.
    """

    def __init__(self) -> None:
        self._quarters: list[_ByConstant] = [{} for _ in range(QUARTERS)]
        self._rows: list[int] = []

    def add(
        self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | None = None,
        shift: str = "", quarter: int | None = 0,
    ) -> None:  # fmt: skip
        """Adds the rows of one batch, each as often as its weight says (once without weights [N]), to which the constant
        called `shift` can be added; none where that is "". They are of one quarter of the data or, of None, a quarter of them
        is of each."""
        if quarter is None:
            for i in range(QUARTERS):
                own = None if weights is None else [_quarter(w, i) for w in weights]
                self.add([_quarter(a, i) for a in x], [_quarter(b, i) for b in y], own, shift, i)
            return
        each = list(weights) if weights is not None else [torch.ones(len(a), device=a.device) for a in x]
        parts = [_products(a, b, w) for a, b, w in zip(x, y, each, strict=True)]
        products, squares = (torch.stack(p) for p in zip(*parts, strict=True))
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(parts), strict=True)]
        _into(self._quarters[quarter], {shift: (products, squares)})

    @property
    def rows(self) -> int:
        """Of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shifts: Mapping[str, Tensor], *, ridge: float | None) -> Solution:
        """The w, and the constants `shifts`, of least E|y - x w - shift|^2 + ridge mean(diag H) |w - weight|^2.

        H is E[x x^T], of x - E[x] where there is a constant; with ridge = 0 what the data leaves open stays as in `weight`.
        Without a ridge, it is chosen by cross-validation (Stone 1974): the weakest of `STRENGTHS` with which w from three
        quarters is as good on the fourth as it gets, within 5 %.
        """
        start, all_of = weight.double(), _moments(_merged(self._quarters))
        if not all(t.isfinite().all() for t in (all_of.second, all_of.cross, all_of.squares)):
            raise PlanError("not finite: the model gives NaN or infinity on this data")
        strength = self._chosen(start) if ridge is None else ridge
        new = all_of.solved(start, strength)
        if not new.isfinite().all():
            raise PlanError("not finite: least squares has no solution on this data")
        free = [p for p in all_of.parts if p.name]
        moved = {p.name: torch.where(p.share == 0, shifts[p.name], p.constant(new)) for p in free}
        off = sum((p.share * (p.constant(start) - shifts[p.name]).square()).sum() for p in free)
        before, after = ((all_of.error(w) + e) / all_of.scale for w, e in ((start, off), (new, 0.0)))
        least = float(before.clamp_min(0)), float(after.clamp_min(0))
        return Solution(new, moved, *least, min(self._rows), strength)

    def _chosen(self, start: Tensor) -> float:
        """From weak to strong, for as long as it gets better."""
        errors: list[float] = []
        for strength in STRENGTHS:
            errors.append(self._held_back(start, strength))
            if errors[-1] > min(errors):
                break
        return next(s for s, error in zip(STRENGTHS, errors, strict=False) if error <= _AS_GOOD * min(errors))

    def _held_back(self, start: Tensor, ridge: float) -> float:
        """The errors on each quarter of what the others give."""
        there = [q for q in self._quarters if q]
        assert len(there) > 1
        error = 0.0
        for held in there:
            w = _moments(_merged(q for q in there if q is not held)).solved(start, ridge)
            error += float(_moments(held).error(w).clamp_min(0))
        return error


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one constant: their share of all [blocks, 1], their means, and what they add to the moments of all."""

    name: str
    share: Tensor
    x: Tensor
    y: Tensor
    terms: tuple[Tensor, ...]

    def constant(self, w: Tensor) -> Tensor:
        """The best one beside w."""
        return self.y - (self.x[:, None] @ w)[:, 0]


@dataclass(frozen=True, slots=True)
class _Moments:
    """E[x x^T], the same and E[x y^T] and E[y^2] around the means that are free, all of E[y^2]; `none`: blocks without rows."""

    parts: list[_Part]
    none: Tensor
    raw: Tensor
    second: Tensor
    cross: Tensor
    squares: Tensor
    power: Tensor

    def solved(self, start: Tensor, ridge: float) -> Tensor:
        """The w of least error, held back to `start`."""
        move = _solved(self.second, self.cross - self.second @ start, ridge, self.raw)
        return start + torch.where(self.none, 0.0, move)

    def error(self, w: Tensor) -> Tensor:
        """E|y - x w - shift|^2 with the best constants, of all blocks."""
        return self.squares.sum() - 2 * (w * self.cross).sum() + (w * (self.second @ w)).sum()

    @property
    def scale(self) -> Tensor:
        """What an error is a share of."""
        return next((s for s in (self.squares.sum(), self.power) if s > 1e-30 * self.power), torch.ones_like(self.power))


def _quarter(rows: Tensor, i: int) -> Tensor:
    return rows[len(rows) * i // QUARTERS : len(rows) * (i + 1) // QUARTERS]


def _into(sums: _ByConstant, more: _ByConstant) -> None:
    for name, (products, squares) in more.items():
        if name in sums:
            products, squares = products + sums[name][0], squares + sums[name][1]
        sums[name] = products, squares


def _merged(quarters: Iterable[_ByConstant]) -> _ByConstant:
    whole: _ByConstant = {}
    for quarter in quarters:
        _into(whole, quarter)
    return whole


def _moments(sums: _ByConstant) -> _Moments:
    total = sum((products[:, -1:, -1:] for products, _ in sums.values()), torch.zeros(()))
    none = total == 0
    parts = [_part(*part, torch.where(none, 1.0, total), name) for name, part in sums.items()]
    return _Moments(parts, none, *(sum(terms[1:], terms[0]) for terms in zip(*(p.terms for p in parts), strict=True)))


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


def _solved(second: Tensor, cross: Tensor, ridge: float, raw: Tensor) -> Tensor:
    """`raw`: the moments before means were subtracted, which tell how much of `second` may be rounding."""
    scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    if ridge == 0:  # the pseudo-inverse: nothing along what the data does not vary in
        values, vectors = torch.linalg.eigh(second)
        largest = values[:, -1:].clamp_min(0) * second.shape[-1] * torch.finfo(second.dtype).eps
        small = values <= torch.maximum(largest, rounding_floor(raw)[:, 0])
        return vectors @ (torch.where(small, 0.0, 1 / values)[:, :, None] * (vectors.mT @ cross))
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    damped = second + torch.maximum(ridge * scale, rounding_floor(raw) + TINY) * eye
    return torch.linalg.solve(damped, cross)
