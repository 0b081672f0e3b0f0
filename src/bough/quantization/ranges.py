"""Ranges of activations: histograms over calibration data, and the rules that choose what INT8 represents of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 4096
_CANDIDATES = 60
_SMALLEST = 2.0**-100
OBSERVERS = ("minmax", "percentile", "mse")
PERCENTILE = 99.99


class Histogram:
    """Counts of values in bins of one width from -limit to limit, with the exact minimum and maximum.

    The limit is a power of two above all values, and doubles where larger values come, by adding neighboring bins in pairs. So
    no count is ever split, and the counts do not depend on the order of the values.
    """

    def __init__(self) -> None:
        self.limit = _SMALLEST
        self.low, self.high = float("inf"), float("-inf")
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count the finite values of a tensor."""
        flat = values.detach().flatten().double().cpu()
        flat = flat[flat.isfinite()]
        if not len(flat):
            return
        low, high = float(flat.min()), float(flat.max())
        self._grow(max(-low, high))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.counts += torch.histc(flat, _BINS, -self.limit, self.limit)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both histograms' values."""
        both = Histogram()
        both.limit = max(self.limit, other.limit)
        for part in (self, other):
            counts, limit = part.counts.clone(), part.limit
            while limit < both.limit:
                counts, limit = _halved(counts), 2 * limit
            both.counts += counts
            both.low, both.high = min(both.low, part.low), max(both.high, part.high)
        return both

    def _grow(self, size: float) -> None:
        while self.limit <= size:
            if not self.counts.any():
                self.limit = 2.0 ** math.frexp(size)[1]
            else:
                self.counts, self.limit = _halved(self.counts), 2 * self.limit

    def centers(self) -> Tensor:
        """Return the middle of each bin."""
        width = 2 * self.limit / _BINS
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width - self.limit


def _halved(counts: Tensor) -> Tensor:
    """Return the counts at twice the limit: pairs of bins from the middle outwards become one."""
    quarter = torch.zeros(_BINS // 4, dtype=counts.dtype)
    return torch.cat([quarter, counts.view(-1, 2).sum(1), quarter])


@dataclass(frozen=True, slots=True)
class Range:
    """Values from `low` (at most 0) to `high` (at least 0) that INT8 represents; what is outside is clipped."""

    low: float
    high: float

    def parameters(self, levels: int = 255, lowest: int = -128) -> tuple[float, int]:
        """Return (scale, zero point) of affine quantization to `levels` + 1 integers from `lowest`.

        Example:
            >>> Range(-1.0, 254.0).parameters()
            (1.0, -127)
        """
        scale = max((self.high - self.low) / levels, float(torch.finfo(torch.float32).tiny) * 2**20)
        return scale, int(min(max(round(lowest - self.low / scale), lowest), lowest + levels))


def choose_range(histogram: Histogram, observer: str) -> Range:
    """Return the range that a rule chooses.

    Args:
        histogram: of the values.
        observer: "minmax", all values; "percentile", all but 0.005 % at each end; "mse", the range with the least squared
            error, of those that shrink the whole range at one or both ends.

    Source: Nagel et al., A White Paper on Neural Network Quantization (2021), section 3.1.
    """
    if histogram.low > histogram.high:
        return Range(0.0, 1.0)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if observer == "percentile":
        share = histogram.counts.cumsum(0) / histogram.counts.sum()
        tail = (1 - PERCENTILE / 100) / 2
        edges = histogram.centers()
        width = 2 * histogram.limit / _BINS
        first = int((share > tail).nonzero()[0])
        last = int((share >= 1 - tail).nonzero()[0])
        return Range(min(max(low, float(edges[first]) - width / 2), 0.0), max(min(high, float(edges[last]) + width / 2), 0.0))
    if observer == "mse" and high > low:
        return _least_squares(histogram, low, high)
    return Range(low, high)


def _least_squares(histogram: Histogram, low: float, high: float) -> Range:
    used = histogram.counts > 0
    values, counts = histogram.centers()[used], histogram.counts[used]
    shares = torch.linspace(0.1, 1.0, _CANDIDATES, dtype=torch.float64)
    lows, highs = shares * low, shares * high
    best = int(_errors(values, counts, lows, highs).argmin())
    low, high = float(lows[best]), float(highs[best])
    if low < 0 < high:  # each end by itself, from the best of both together
        ends = shares * (low if -low < high else high)
        ends = torch.unique(ends)
        pair = (ends, torch.full_like(ends, high)) if -low < high else (torch.full_like(ends, low), ends)
        best = int(_errors(values, counts, *pair).argmin())
        low, high = float(pair[0][best]), float(pair[1][best])
    return Range(low, high)


def _errors(values: Tensor, counts: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """Return the squared error of quantizing to each of several ranges; that of rounding is scale^2 / 12 per value."""
    scales = (highs - lows) / 255
    over = (values[None] - highs[:, None]).clamp_min(0) + (lows[:, None] - values[None]).clamp_min(0)
    inside = (over == 0).double() * (scales**2 / 12)[:, None]
    return ((over**2 + inside) * counts[None]).sum(1)
