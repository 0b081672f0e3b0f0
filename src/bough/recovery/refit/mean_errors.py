"""Mean errors of outputs from running sums: what a bias alone can compensate for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bough.calibration import add_over_processes
from bough.errors import PlanError
from bough.recovery.refit.ridge import Solution


class MeanErrors:
    """Running sums of y - x w over rows x [N, d] and y [N, outputs] of each block, from which the constants alone are solved.

    Memory is that of a few rows. Rows of the same w may have different constants, identified by name.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # [blocks, 5, outputs]: count, errors, their squares, y, their squares
        self._rows: list[int] = []

    def add(self, x: Sequence[Tensor] | Tensor, y: Sequence[Tensor] | Tensor, weight: Tensor, shift: str) -> None:
        """Add the rows of one batch.

        Args:
            x: [N, d] per block.
            y: [N, outputs] per block.
            weight: w, [blocks, d, outputs].
            shift: name of the constant of these rows.
        """
        blocks = []
        for rows, targets, w in zip(x, y, weight.double(), strict=True):
            targets = targets.double()
            errors = targets - rows.double() @ w
            counts = torch.full_like(w[0], len(targets))
            terms = (counts, errors.sum(0), errors.square().sum(0), targets.sum(0), targets.square().sum(0))
            blocks.append(torch.stack(terms))
        total = torch.stack(blocks)
        self._sums[shift] = self._sums[shift] + total if shift in self._sums else total
        self._rows = [len(a) + n for a, n in zip(x, self._rows or [0] * len(blocks), strict=True)]

    def add_over_processes(self) -> None:
        """Replace the sums by their totals over all processes, equal in all of them."""
        rows = {"rows": torch.tensor(self._rows)} if self._rows else {}
        add_over_processes(self._sums, device=next((t.device for t in self._sums.values()), None))
        add_over_processes(rows)
        self._rows = [int(n) for n in rows.get("rows", [])]

    @property
    def rows(self) -> int:
        """Number of rows of all blocks together."""
        return sum(self._rows)

    def solve(self, weight: Tensor, shifts: Mapping[str, Tensor]) -> Solution:
        """Return the constants of least error, with w as it is; a block without rows keeps its constant.

        Args:
            weight: w, [blocks, d, outputs].
            shifts: the initial constants by name, [blocks, outputs].

        Raises:
            PlanError: the sums are not finite.
        """
        constants, before, after, variance, power = dict[str, Tensor](), 0.0, 0.0, 0.0, 0.0
        for name, sums in self._sums.items():
            if not sums.isfinite().all():
                raise PlanError("not finite: the model gives NaN or infinity on this data")
            count, error, error_square, y, y_square = sums.unbind(1)
            mean = error / count.clamp_min(1)
            constants[name] = torch.where(count == 0, shifts[name], mean)
            before += float((error_square - 2 * shifts[name] * error + count * shifts[name].square()).sum())
            after += float((error_square - mean * error).sum())
            variance += float((y_square - y.square() / count.clamp_min(1)).sum())
            power += float(y_square.sum())
        scale = next((s for s in (variance, power) if s > 1e-30 * power), 1.0)
        return Solution(weight.double(), constants, max(before, 0.0) / scale, max(after, 0.0) / scale, min(self._rows), None)
