"""Integer weights, biases and multipliers of a layer that multiplies and accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.exporting.embedded.fixed_point import bounds, factors
from bough.exporting.embedded.lowering.context import Context
from bough.exporting.embedded.program import Int8, Int32, Quantization, Range, Requantization

_BIAS_LIMIT = 2.0**29  # of the integer bias, so that accumulators stay within 32 bits


@dataclass(frozen=True, slots=True)
class Layer:
    """What a kernel needs of a layer, output channels first."""

    weight: Int8
    bias: Int32
    factors: Requantization
    range: Range


def quantized_layer(
    context: Context, node: Any, weight: Any, bias: Any, source: Quantization, *, transposed: bool = False
) -> Layer:
    """Quantize a layer's weights per output channel (if they are not yet) and its bias at the scale of the accumulator.

    Args:
        context: the lowering.
        node: the layer's node, for the parameters of its result.
        weight: node of the weight, output channels first; second if `transposed`.
        bias: node of the bias or None.
        source: parameters of the layer's input.
    """
    given = context.reading.weights.get(weight)
    real = context.array(weight)
    if real is None:
        raise context.refuse(node, "it has no weight")
    if transposed:
        real = real.swapaxes(0, 1)
    channels = real.shape[0]
    summand = np.zeros(channels) if bias is None else np.asarray(context.array(bias), dtype=np.float64)
    if given is None or transposed:
        scales = np.abs(real).reshape(channels, -1).max(1) / 127
    else:
        scales = np.broadcast_to(given.scales, (channels,)).astype(np.float64)
    least = np.maximum(np.abs(summand) / (_BIAS_LIMIT * source.scale), 1e-10)
    enough = scales >= least
    scales = np.where(enough, scales, least)
    integers = _integers(real, scales)
    if given is not None and not transposed:
        integers[enough] = given.values[enough]
    quantization, low, high = context.result(node)
    return Layer(
        integers,
        np.round(summand / (source.scale * scales)).astype(np.int32),
        factors(source.scale * scales / quantization.scale),
        bounds(quantization, low, high),
    )


def _integers(real: NDArray[np.float64], scales: NDArray[np.float64]) -> Int8:
    shape = (-1,) + (1,) * (real.ndim - 1)
    return np.clip(np.round(real / scales.reshape(shape)), -127, 127).astype(np.int8)
