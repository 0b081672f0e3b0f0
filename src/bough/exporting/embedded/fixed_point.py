"""Fixed-point arithmetic of integer inference: multipliers with shifts, and the rounding of gemmlowp and TensorFlow Lite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bough.exporting.embedded.program import Quantization, Range, Requantization

LOWEST, HIGHEST = -128, 127


def factors(scales: Iterable[float]) -> Requantization:
    """Return the 31-bit multiplier and the shift of each positive real scale.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
    (2018), section 2.2.

    Example:
        >>> factors([0.5])
        Requantization(multiplier=array([1073741824], dtype=int32), shift=array([0], dtype=int32))
    """
    pairs = [_factor(float(scale)) for scale in scales]
    multiplier, shift = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    return Requantization(multiplier, shift)


def _factor(scale: float) -> tuple[int, int]:
    if scale <= 0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = round(fraction * 2**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def requantize(values: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """Multiply integers by multiplier * 2**(shift - 31): a rounded doubling high product, then a rounded right shift.

    The product rounds halves up, the shift rounds halves away from zero, as gemmlowp's
    SaturatingRoundingDoublingHighMul and RoundingDivideByPOT do.
    """
    shifts = np.asarray(shift, dtype=np.int64)
    left, right = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    high = (np.asarray(values, dtype=np.int64) * (1 << left) * np.asarray(multiplier, dtype=np.int64) + (1 << 30)) >> 31
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


def clamped(values: NDArray[np.int64], bounds: Range) -> NDArray[np.int8]:
    """Add the offset and clamp to the bounds."""
    return np.clip(values + bounds.offset, bounds.low, bounds.high).astype(np.int8)


def quantized(values: ArrayLike, quantization: Quantization) -> NDArray[np.int8]:
    """Round real values to int8, halves to even, as `torch.ops.quantized_decomposed.quantize_per_tensor` does."""
    # torch multiplies by the inverse in float32
    inverse = np.float32(1.0) / np.float32(quantization.scale)
    rounded = np.rint(np.asarray(values, dtype=np.float32) * inverse) + quantization.zero_point
    result: NDArray[np.int8] = np.clip(rounded, LOWEST, HIGHEST).astype(np.int8)
    return result


def dequantized(values: ArrayLike, quantization: Quantization) -> NDArray[np.float32]:
    """Return the real values that int8 values stand for."""
    centred = np.asarray(values, dtype=np.float32) - np.float32(quantization.zero_point)
    return (centred * np.float32(quantization.scale)).astype(np.float32)


def bounds(quantization: Quantization, low: float = -math.inf, high: float = math.inf) -> Range:
    """Return the offset and int8 bounds of a result that is clamped to [low, high] as a real number."""

    def limit(value: float, default: int) -> int:
        if math.isinf(value):
            return default
        return int(np.clip(round(value / quantization.scale) + quantization.zero_point, LOWEST, HIGHEST))

    return Range(quantization.zero_point, limit(low, LOWEST), limit(high, HIGHEST))
