"""A straight line through measured points, and how well it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bough.errors import ComparisonError


@dataclass(frozen=True, slots=True)
class LinearFit:
    """y = intercept + slope x by least squares.

    Attributes:
        intercept: y at x = 0: time that no cut takes away, such as the overhead per operator.
        slope: y per unit of x.
        r2: 1 - (sum of squared residuals) / (sum of squared deviations from the mean).
        residuals: y - predicted of each point.
    """

    intercept: float
    slope: float
    r2: float
    residuals: tuple[float, ...]

    @property
    def largest_residual(self) -> float:
        """The largest residual, by magnitude."""
        return max(abs(r) for r in self.residuals)

    def predict(self, x: float) -> float:
        """Return y of x."""
        return self.intercept + self.slope * x

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "residuals": list(self.residuals), "largest_residual": self.largest_residual}


def linear_fit(x: Sequence[float], y: Sequence[float]) -> LinearFit:
    """Return the least-squares line through points.

    Raises:
        ComparisonError: fewer than three points, or all x are equal.

    Example:
        >>> fit = linear_fit([1, 2, 3], [3, 5, 7])
        >>> round(fit.intercept, 9), round(fit.slope, 9), round(fit.r2, 9)
        (1.0, 2.0, 1.0)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3 or np.ptp(a) == 0:
        raise ComparisonError(f"{len(a)} points of {len(set(x))} different costs: a line needs three points that differ")
    centered = a - a.mean()
    slope = float(centered @ (b - b.mean()) / (centered @ centered))
    intercept = float(b.mean() - slope * a.mean())
    predicted = intercept + slope * a
    spread = float(np.square(b - b.mean()).sum())
    r2 = 1 - float(np.square(b - predicted).sum()) / spread if spread else 1.0
    return LinearFit(intercept, slope, r2, tuple((b - predicted).tolist()))
