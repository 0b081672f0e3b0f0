"""Convolutions, transposed convolutions, and batch norms that no convolution takes up."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from bough.exporting.embedded.fixed_point import bounds, factors
from bough.exporting.embedded.folding import affine
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, image_dims, lowers, pair
from bough.exporting.embedded.lowering.weights import Layer, quantized_layer
from bough.exporting.embedded.program import Conv, Fill, Window
from bough.exporting.embedded.reading import argument


@lowers("conv1d", "conv2d")
def convolution(context: Context, node: fx.Node) -> Value:
    """Lower a convolution; depthwise ones have kernels of their own."""
    x = context.image(node, context.value(argument(node, 0)))
    rank = len(x.shape)
    bias, groups = argument(node, 2, "bias"), argument(node, 6, "groups", 1)
    stride = pair(argument(node, 3, "stride", 1), rank, 1)
    dilation = pair(argument(node, 5, "dilation", 1), rank, 1)
    layer = quantized_layer(context, node, argument(node, 1), bias, x.quantization)
    kernel = pair(layer.weight.shape[2:], rank, 1)
    padding = _padding(argument(node, 4, "padding", 0), rank, kernel, dilation)
    return _convolved(context, node, x, layer, Window(kernel, stride, padding, dilation), groups)


def _padding(given: Any, rank: int, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    if given == "valid":
        return 0, 0
    if given == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return total[0] // 2, total[1] // 2
    return pair(given, rank, 0)


def _convolved(context: Context, node: fx.Node, x: Value, layer: Layer, window: Window, groups: int) -> Value:
    """Add a convolution whose result has the shape that the graph says."""
    shape = tuple(int(s) for s in node.meta["val"].shape)
    channels, results = x.shape[1], shape[1]
    weight = layer.weight.reshape(results, -1, *window.kernel).transpose(0, 2, 3, 1)
    depthwise = groups == channels and results % channels == 0
    if depthwise:
        weight = weight.transpose(3, 1, 2, 0)
    tensor = context.tensor(node, int(np.prod(shape)), context.result(node)[0])
    context.program.ops.append(
        Conv(
            context.source(node), (x.tensor,), tensor, image_dims(x.shape), image_dims(shape), window,
            np.ascontiguousarray(weight), layer.bias, layer.factors, layer.range, depthwise,
        )
    )  # fmt: skip
    return Value(tensor, shape, layout.channels_last(len(shape)))


@lowers("conv_transpose1d", "conv_transpose2d")
def transposed_convolution(context: Context, node: fx.Node) -> Value:
    """Lower a transposed convolution: spread the input by the stride, then convolve with the kernel turned around."""
    x = context.image(node, context.value(argument(node, 0)))
    rank = len(x.shape)
    if argument(node, 6, "groups", 1) != 1:
        raise context.refuse(node, "transposed convolutions in groups are not supported")
    stride = pair(argument(node, 3, "stride", 1), rank, 1)
    padding = pair(argument(node, 4, "padding", 0), rank, 0)
    dilation = pair(argument(node, 7, "dilation", 1), rank, 1)
    layer = quantized_layer(context, node, argument(node, 1), argument(node, 2, "bias"), x.quantization, transposed=True)
    spatial = tuple(range(2, layer.weight.ndim))
    layer = Layer(np.flip(layer.weight, spatial), layer.bias, layer.factors, layer.range)
    kernel = pair(layer.weight.shape[2:], rank, 1)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(p > r for p, r in zip(padding, reach, strict=True)):
        raise context.refuse(node, "padding larger than the kernel's reach is not supported")
    if stride != (1, 1):
        x = _spread(context, node, x, stride)
    window = Window(kernel, (1, 1), (reach[0] - padding[0], reach[1] - padding[1]), dilation)
    return _convolved(context, node, x, layer, window, 1)


def _spread(context: Context, node: fx.Node, x: Value, stride: tuple[int, int]) -> Value:
    """Put zeros between the elements of an image."""
    n, height, width, channels = image_dims(x.shape)
    rows, columns = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1
    shape = (n, channels, rows, columns) if len(x.shape) == 4 else (n, channels, columns)
    tensor = context.tensor(node, n * rows * columns * channels, x.quantization)
    context.program.ops.append(Fill(context.source(node), (), tensor, x.quantization.zero_point))
    axes = [
        (n, height * width * channels, rows * columns * channels),
        (height, width * channels, stride[0] * columns * channels),
        (width, channels, stride[1] * channels),
        (channels, 1, 1),
    ]
    context.copy_strided(node, x.tensor, tensor, axes, (0, 0))
    return Value(tensor, shape, layout.channels_last(len(shape)))


@lowers("_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm")
def batch_norm(context: Context, node: fx.Node) -> Value | tuple[Value, ...]:
    """Lower a batch norm as a depthwise convolution with a kernel of one element."""
    scale, shift = (t.numpy() for t in affine(context.reading, node))
    item = next((u for u in node.users if u.name.startswith("getitem")), node)
    quantization = context.result(item)[0]
    x = context.value(argument(node, 0))
    if len(x.shape) == 2:
        dims = (1, 1, x.shape[0], x.shape[1])
        x = context.arranged(node, x, layout.row_major(2))
    else:
        x = context.image(node, x)
        dims = image_dims(x.shape)
    scales = np.maximum(np.abs(scale) / 127, np.maximum(np.abs(shift) / (2.0**29 * x.quantization.scale), 1e-10))
    weight = np.clip(np.round(scale / scales), -127, 127).astype(np.int8).reshape(1, 1, 1, -1)
    tensor = context.tensor(node, x.tensor.size, quantization)
    context.program.ops.append(
        Conv(
            context.source(node), (x.tensor,), tensor, dims, dims, Window((1, 1), (1, 1), (0, 0)), weight,
            np.round(shift / (x.quantization.scale * scales)).astype(np.int32),
            factors(x.quantization.scale * scales / quantization.scale), bounds(quantization), True,
        )
    )  # fmt: skip
    result = Value(tensor, x.shape, x.order)
    return result if item is node else (result,)
