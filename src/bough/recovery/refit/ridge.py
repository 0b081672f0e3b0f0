"""Ridge regression from running sums, in float64, block by block, with the strength chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bough.calibration import TINY, add_over_processes, gather_objects, rounding_floor
from bough.errors import PlanError

RIDGES = tuple(10.0**k for k in range(-3, 3))
"""Candidate strengths, ascending."""

FOLDS = 4
"""Number of parts of the data for cross-validation."""

_SumsByConstant = dict[str, tuple[Tensor, Tensor]]
"""For each constant: sums of [x y 1]^T [x 1], [blocks, d + outputs + 1, d + 1], and of y^2, [blocks, outputs]."""

_TOLERANCE = 1.05
"""A candidate is good enough if its error is at most this multiple of the smallest one."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Solution of y ~ x w + constant. A block without rows keeps its weight.

    Attributes:
        weight: w, [blocks, d, outputs].
        shifts: the constants by name, [blocks, outputs].
        before, after: E|y - x w - constant|^2 as a share of E|y - E y|^2, with the initial weight and with the solution. If no
            constant can be added, or y does not vary, the share is of E|y|^2; if that is 0, the error itself.
        rows: number of rows of the block with the fewest.
        ridge: the strength that was used; None if the weight was not solved for.
    """

    weight: Tensor
    shifts: dict[str, Tensor]
    before: float
    after: float
    rows: int
    ridge: float | None

    def to(self, device: torch.device) -> Solution:
        """Return the solution with its tensors on a device."""
        shifts = {name: shift.to(device) for name, shift in self.shifts.items()}
        return replace(self, weight=self.weight.to(device), shifts=shifts)


class NormalEquations:
    """Running sums of rows x [N, d] and y [N, outputs] of each block, from which w and the constants are solved.

    Memory is d x (d + outputs) per block, constant and fold, for any number of rows. Rows of the same w may have different
    constants, as when a layer is used with several batch norms; constants are identified by name.
    """

    def __init__(self) -> None:
        self._folds: list[_SumsByConstant] = [{} for _ in range(FOLDS)]
        self._rows: list[int] = []

    def add(
        self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weights: Sequence[Tensor] | None = None,
        shift: str = "", fold: int | None = 0,
    ) -> None:  # fmt: skip
        """Add the rows of one batch.

        Args:
            x: [N, d] per block.
            y: [N, outputs] per block.
            weights: weight of each row, [N] per block; 1 unless given.
            shift: name of the constant of these rows; "" if no constant can be added.
            fold: to which the rows belong; None splits them evenly among all folds.
        """
        if fold is None:
            for i in range(FOLDS):
                part = None if weights is None else [_rows_of_fold(w, i) for w in weights]
                self.add([_rows_of_fold(a, i) for a in x], [_rows_of_fold(b, i) for b in y], part, shift, i)
            return
        row_weights = list(weights) if weights is not None else [torch.ones(len(a), device=a.device) for a in x]
        blocks = [_weighted_sums(a, b, w) for a, b, w in zip(x, y, row_weights, strict=True)]
        products, squares = (torch.stack(p) for p in zip(*blocks, strict=True))
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(blocks), strict=True)]
        _add_sums(self._folds[fold], {shift: (products, squares)})

    def add_over_processes(self) -> None:
        """Replace the sums by their totals over all processes, equal in all of them."""
        names = list(dict.fromkeys(n for part in gather_objects([n for f in self._folds for n in f]) for n in part))
        sums = {
            f"{fold} {names.index(name)} {k}": tensor
            for fold, by_name in enumerate(self._folds)
            for name, pair in by_name.items()
            for k, tensor in enumerate(pair)
        }
        rows = {"rows": torch.tensor(self._rows)} if self._rows else {}
        device = next((t.device for t in sums.values()), None)
        add_over_processes(sums, device=device)
        add_over_processes(rows)
        self._rows = [int(n) for n in rows.get("rows", [])]
        for fold in range(FOLDS):
            keys = [(name, f"{fold} {i} {{}}") for i, name in enumerate(names) if f"{fold} {i} 0" in sums]
            self._folds[fold] = {name: (sums[key.format(0)], sums[key.format(1)]) for name, key in keys}

    @property
    def rows(self) -> int:
        """Number of rows of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shifts: Mapping[str, Tensor], *, ridge: float | None) -> Solution:
        """Return the minimizer of E|y - x w - constant|^2 + ridge mean(diag H) |w - weight|^2 over w and the constants.

        H is E[x x^T], of x - E[x] for rows with a constant. With ridge = 0, w stays equal to `weight` along directions in
        which the data does not vary.

        Source: Stone, 1974 (cross-validation).

        Args:
            weight: the initial w, [blocks, d, outputs].
            shifts: the initial constants by name, [blocks, outputs].
            ridge: the strength. None chooses the weakest of `RIDGES` whose cross-validation error is within 5 % of the best.

        Raises:
            PlanError: the sums or the solution are not finite.
        """
        start, total = weight.double(), _moments_of(_merged(self._folds))
        if not all(t.isfinite().all() for t in (total.second, total.cross, total.squares)):
            raise PlanError("not finite: the model gives NaN or infinity on this data")
        strength = self._cross_validated_ridge(start) if ridge is None else ridge
        solved = total.solve(start, strength)
        if not solved.isfinite().all():
            raise PlanError("not finite: least squares has no solution on this data")
        with_constant = [p for p in total.parts if p.name]
        constants = {p.name: torch.where(p.share == 0, shifts[p.name], p.constant(solved)) for p in with_constant}
        misfit = sum((p.share * (p.constant(start) - shifts[p.name]).square()).sum() for p in with_constant)
        before, after = ((total.error(w) + e) / total.scale for w, e in ((start, misfit), (solved, 0.0)))
        errors = float(before.clamp_min(0)), float(after.clamp_min(0))
        return Solution(solved, constants, *errors, min(self._rows), strength)

    def _cross_validated_ridge(self, start: Tensor) -> float:
        """Return the weakest ridge whose error is within the tolerance; stop at the first ridge that is worse than the last."""
        errors: list[float] = []
        for strength in RIDGES:
            errors.append(self._cross_validation_error(start, strength))
            if errors[-1] > min(errors):
                break
        return next(s for s, error in zip(RIDGES, errors, strict=False) if error <= _TOLERANCE * min(errors))

    def _cross_validation_error(self, start: Tensor, ridge: float) -> float:
        """Return the sum over folds of the error of the solution from the other folds."""
        folds = [f for f in self._folds if f]
        assert len(folds) > 1
        error = 0.0
        for test in folds:
            w = _moments_of(_merged(f for f in folds if f is not test)).solve(start, ridge)
            error += float(_moments_of(test).error(w).clamp_min(0))
        return error


@dataclass(frozen=True, slots=True)
class _ConstantPart:
    """Rows with one constant: their share of all rows [blocks, 1], their means, and their terms of the total moments."""

    name: str
    share: Tensor
    x_mean: Tensor
    y_mean: Tensor
    terms: tuple[Tensor, ...]

    def constant(self, w: Tensor) -> Tensor:
        """Return the best constant for a given w."""
        return self.y_mean - (self.x_mean[:, None] @ w)[:, 0]


@dataclass(frozen=True, slots=True)
class _Moments:
    """Moments of all rows.

    Attributes:
        parts: by constant.
        is_empty: blocks without rows, [blocks, 1, 1].
        raw: E[x x^T].
        second, cross, squares: E[x x^T], E[x y^T] and E[y^2], around the means of rows that have a constant.
        power: E[y^2], summed over blocks and outputs.
    """

    parts: list[_ConstantPart]
    is_empty: Tensor
    raw: Tensor
    second: Tensor
    cross: Tensor
    squares: Tensor
    power: Tensor

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """Return the w of least error, regularized towards `start`."""
        change = _solve_ridge(self.second, self.cross - self.second @ start, ridge, self.raw)
        return start + torch.where(self.is_empty, 0.0, change)

    def error(self, w: Tensor) -> Tensor:
        """Return E|y - x w - constant|^2 with the best constants, summed over blocks."""
        return self.squares.sum() - 2 * (w * self.cross).sum() + (w * (self.second @ w)).sum()

    @property
    def scale(self) -> Tensor:
        """The quantity that errors are shares of."""
        return next((s for s in (self.squares.sum(), self.power) if s > 1e-30 * self.power), torch.ones_like(self.power))


def _rows_of_fold(rows: Tensor, i: int) -> Tensor:
    """Return part number `i` of `FOLDS` equal parts of the rows."""
    return rows[len(rows) * i // FOLDS : len(rows) * (i + 1) // FOLDS]


def _add_sums(sums: _SumsByConstant, more: _SumsByConstant) -> None:
    """Add the sums of each constant in place."""
    for name, (products, squares) in more.items():
        if name in sums:
            products, squares = products + sums[name][0], squares + sums[name][1]
        sums[name] = products, squares


def _merged(folds: Iterable[_SumsByConstant]) -> _SumsByConstant:
    """Return the sums of several folds together."""
    total: _SumsByConstant = {}
    for fold in folds:
        _add_sums(total, fold)
    return total


def _moments_of(sums: _SumsByConstant) -> _Moments:
    """Return moments from sums."""
    total = sum((products[:, -1:, -1:] for products, _ in sums.values()), torch.zeros(()))
    is_empty = total == 0
    parts = [_part_of(*part, torch.where(is_empty, 1.0, total), name) for name, part in sums.items()]
    return _Moments(parts, is_empty, *(sum(terms[1:], terms[0]) for terms in zip(*(p.terms for p in parts), strict=True)))


def _part_of(products: Tensor, squares: Tensor, total: Tensor, name: str) -> _ConstantPart:
    """Return the part of one constant; `total` [blocks, 1, 1] is the number of rows of all constants."""
    d, count = products.shape[-1] - 1, products[:, -1:, -1]
    x_mean, y_mean = (m / torch.where(count == 0, 1.0, count) for m in (products[:, :d, -1], products[:, d:-1, -1]))
    share, powers = count / total[:, 0], squares / total[:, 0]
    raw, cross = products[:, :d, :d] / total, products[:, d:-1, :d].mT / total
    second, power = raw, powers.sum()
    if name:
        weighted_mean = share[:, :, None] * x_mean[:, :, None]
        second, cross = raw - weighted_mean * x_mean[:, None, :], cross - weighted_mean * y_mean[:, None, :]
        powers = powers - share * y_mean.square()
    return _ConstantPart(name, share, x_mean, y_mean, (raw, second, cross, powers, power))


def _weighted_sums(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of weight [x y 1]^T [x 1] and of weight y^2 over rows."""
    x, y = x.double(), y.double()
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    root = weight.double().sqrt()[:, None]
    x, y = x * root, y * root
    return torch.cat([x[:, :-1], y, x[:, -1:]], 1).mT @ x, y.square().sum(0)


def _solve_ridge(second: Tensor, cross: Tensor, ridge: float, raw: Tensor) -> Tensor:
    """Return (second + ridge mean(diag second) I)^-1 cross, block by block; the pseudo-inverse for ridge = 0.

    Args:
        second: around means, [blocks, d, d].
        cross: [blocks, d, outputs].
        ridge: the strength.
        raw: `second` before means were subtracted, from which the possible size of rounding errors follows.
    """
    scale = second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    if ridge == 0:
        values, vectors = torch.linalg.eigh(second)
        largest = values[:, -1:].clamp_min(0) * second.shape[-1] * torch.finfo(second.dtype).eps
        is_null = values <= torch.maximum(largest, rounding_floor(raw)[:, 0])
        return vectors @ (torch.where(is_null, 0.0, 1 / values)[:, :, None] * (vectors.mT @ cross))
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    damped = second + torch.maximum(ridge * scale, rounding_floor(raw) + TINY) * eye
    factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.linalg.solve(damped, cross) if failed.any() else torch.cholesky_solve(cross, factor)
