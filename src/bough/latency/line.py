"""Measured latency of whole models as a line in the predicted one: an overhead per operator, and a slope.

A ratio of measured to predicted times says that a model half as large takes half as long. Where much of the time is overhead
that no cut takes away, it does not, and plans that are corrected by a ratio approach their budget in many steps. The line

    min_{overhead >= 0, slope > 0} sum_i ((t_i - overhead n_i - slope p_i) / t_i)^2

with t_i the measured seconds of model i, n_i its number of operators and p_i its predicted seconds, needs two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DISTINCT = 1e-6  # relative determinant below which all models count as one point of the line
_FLAT = 0.01  # of the ratio: a slope below it says that no cut saves time, which a few noisy measurements can not show

_STEP = 0.01  # relative step of rounded lines


@dataclass(frozen=True, slots=True)
class LatencyLine:
    """Measured seconds = op_overhead * operators + slope * predicted seconds.

    Attributes:
        op_overhead: seconds per operator.
        slope: measured seconds per predicted second.
    """

    op_overhead: float
    slope: float

    @classmethod
    def fitted(cls, ops: Sequence[float], predicted: Sequence[float], measured: Sequence[float]) -> LatencyLine:
        """Return the line of least relative squares; a ratio where the models are one point, or the line is flat or falls.

        Args:
            ops: number of operators of each model.
            predicted, measured: its seconds, all positive.

        Example:
            >>> line = LatencyLine.fitted([10, 10], [1.0, 0.5], [0.9, 0.7])  # 0.5 s of each are overhead
            >>> round(line.op_overhead, 6), round(line.slope, 6)
            (0.05, 0.4)
        """
        n, p, t = (np.asarray(x, dtype=np.float64) for x in (ops, predicted, measured))
        n, p = n / t, p / t
        nn, np_, pp = n @ n, n @ p, p @ p
        ratio = cls(0.0, float(p.sum() / pp))
        determinant = nn * pp - np_**2
        if determinant <= _DISTINCT * nn * pp:
            return ratio
        overhead = (pp * n.sum() - np_ * p.sum()) / determinant
        slope = (nn * p.sum() - np_ * n.sum()) / determinant
        return cls(float(overhead), float(slope)) if overhead > 0 and slope > _FLAT * ratio.slope else ratio

    def rounded(self) -> LatencyLine:
        """Return the line in steps of 1 %, so that noise does not make a new one of each measurement."""
        return LatencyLine(*(x and float(np.exp(round(np.log(x) / _STEP) * _STEP)) for x in (self.op_overhead, self.slope)))
