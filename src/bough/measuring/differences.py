"""How far outputs are from those expected: the largest error, and the ratio of signal to noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""{name: tensor}"""


def largest_error(expected: Tensors, actual: Tensors, ranges: Mapping[str, float] | None = None) -> float:
    """Return the largest difference between outputs, as a share of the largest absolute value of the output that it is in.

    Infinite if a shape differs, or if one of the two is not finite where the other is.

    Args:
        expected, actual: outputs by name.
        ranges: absolute values that outputs can take: where one is larger than those of `expected`, it is used in their place.

    Example:
        >>> largest_error({"y": torch.tensor([1.0, -2.0])}, {"y": torch.tensor([1.0, -1.0])})
        0.5
    """
    worst = 0.0
    for name, wanted in expected.items():
        found = actual.get(name)
        if found is None or found.shape != wanted.shape:
            return math.inf
        y, z = wanted.to("cpu", torch.float64), found.double()
        same = (y == z) | (y.isnan() & z.isnan())
        if bool(same.all()):
            continue
        difference = (y - z).abs()[~same].max()
        largest = float(y[y.isfinite()].abs().max()) if bool(y.isfinite().any()) else 1.0
        scale = max(largest, (ranges or {}).get(name, 0.0))
        value = float(difference) / scale if scale else float(difference)
        worst = max(worst, value if value == value else math.inf)
    return worst


def signal_to_noise(expected: Tensors, actual: Tensors) -> float:
    """Return the power of outputs over that of the differences in decibels, over all finite floating-point values.

    Args:
        expected, actual: outputs by name.

    Example:
        >>> signal_to_noise({"y": torch.tensor([1.0, 3.0])}, {"y": torch.tensor([1.0, 2.0])})
        10.0
    """
    signal = noise = 0.0
    for name, wanted in expected.items():
        if wanted.is_floating_point() and name in actual and actual[name].shape == wanted.shape:
            y, z = wanted.to("cpu", torch.float64), actual[name].double()
            finite = y.isfinite() & z.isfinite()
            signal += float(y[finite].square().sum())
            noise += float((y - z)[finite].square().sum())
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
