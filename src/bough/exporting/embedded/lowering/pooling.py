"""Pooling and means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from bough.exporting.embedded.fixed_point import bounds, factors
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, image_dims, lowers, pair
from bough.exporting.embedded.lowering.shapes import padded
from bough.exporting.embedded.program import Mean, Pool, Range, Window
from bough.exporting.embedded.reading import argument


@lowers("max_pool1d", "max_pool2d")
def max_pool(context: Context, node: fx.Node) -> Value:
    """Lower a maximum over windows."""
    x = context.image(node, context.value(argument(node, 0)))
    if any(d != 1 for d in _list(argument(node, 4, "dilation", 1))):
        raise context.refuse(node, "dilation is not supported in pooling")
    return _pooled(context, node, x, _window(context, node, x), maximum=True)


@lowers("avg_pool1d", "avg_pool2d")
def average_pool(context: Context, node: fx.Node) -> Value:
    """Lower an average over windows; padding that counts is written out first."""
    x = context.image(node, context.value(argument(node, 0)))
    if argument(node, 6, "divisor_override") is not None:
        raise context.refuse(node, "divisor_override is not supported")
    window = _window(context, node, x)
    if any(window.padding) and argument(node, 5, "count_include_pad", True):
        if argument(node, 4, "ceil_mode", False):
            raise context.refuse(node, "ceil_mode with padding that counts is not supported")
        height, width = window.padding
        sides = [(width, width), (height, height)] if len(x.shape) == 4 else [(width, width)]
        x = context.image(node, padded(context, node, x, sides, 0.0))
        window = Window(window.kernel, window.stride, (0, 0))
    return _pooled(context, node, x, window, maximum=False)


@lowers("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive_pool(context: Context, node: fx.Node) -> Value | tuple[Value, ...]:
    """Lower pooling to a given size, where all windows are alike; to one element with the precision of a mean."""
    x = context.image(node, context.value(argument(node, 0)))
    maximum = "max" in str(node.target)
    _, height, width, _ = image_dims(x.shape)
    rows, columns = pair(argument(node, 1), len(x.shape), 1)
    if height % rows or width % columns:
        raise context.refuse(node, f"{height}x{width} does not divide into {rows}x{columns} windows of one size")
    if rows == columns == 1 and not maximum:
        return _mean(context, node, x, tuple(range(2, len(x.shape))), keep=True)
    size = (height // rows, width // columns)
    shape = (*x.shape[:2], *((rows, columns) if len(x.shape) == 4 else (columns,)))
    result = _pooled(context, node, x, Window(size, size, (0, 0)), maximum=maximum, shape=shape)
    return (result,) if maximum else result


@lowers("mean")
def mean(context: Context, node: fx.Node) -> Value:
    """Lower a mean over adjacent dimensions."""
    x = context.value(argument(node, 0))
    rank = len(x.shape)
    dims = _list(argument(node, 1, "dim")) if argument(node, 1, "dim") is not None else list(range(rank))
    return _mean(context, node, x, tuple(d % rank for d in dims), keep=bool(argument(node, 2, "keepdim", False)))


def _mean(context: Context, node: fx.Node, x: Value, dims: tuple[int, ...], *, keep: bool) -> Value:
    """Reduce dimensions that lie side by side in memory, moved there if they do not."""
    places = sorted(x.order.index(d) for d in dims if x.shape[d] != 1)
    if places and places[-1] - places[0] != len(places) - 1:
        others = tuple(d for d in range(len(x.shape)) if d not in dims)
        x = context.moved(node, x, (*others, *dims))
        places = sorted(x.order.index(d) for d in dims if x.shape[d] != 1)
    memory = x.memory_shape
    first, last = (places[0], places[-1] + 1) if places else (0, 0)
    outer, count, inner = math.prod(memory[:first]), math.prod(memory[first:last]), math.prod(memory[last:])
    quantization = context.reading.parameters.get(node, x.quantization)
    tensor = context.tensor(node, outer * inner, quantization)
    context.program.ops.append(
        Mean(
            context.source(node), (x.tensor,), tensor, outer, count, inner,
            factors([x.quantization.scale / (count * quantization.scale)]), bounds(quantization),
        )
    )  # fmt: skip
    shape = tuple(1 if d in dims else s for d, s in enumerate(x.shape))
    if keep:
        return Value(tensor, shape, x.order)
    left = [d for d in range(len(x.shape)) if d not in dims]
    return Value(tensor, tuple(x.shape[d] for d in left), tuple(left.index(d) for d in x.order if d in left))


def _window(context: Context, node: fx.Node, x: Value) -> Window:
    rank = len(x.shape)
    kernel = pair(argument(node, 1), rank, 1)
    stride = argument(node, 2, "stride") or argument(node, 1)
    return Window(kernel, pair(stride, rank, 1), pair(argument(node, 3, "padding", 0), rank, 0))


def _pooled(
    context: Context, node: fx.Node, x: Value, window: Window, *, maximum: bool, shape: tuple[int, ...] | None = None
) -> Value:
    shape = tuple(int(s) for s in node.meta["val"].shape) if shape is None else shape
    tensor = context.tensor(node, int(np.prod(shape)), x.quantization)
    context.program.ops.append(
        Pool(
            context.source(node), (x.tensor,), tensor, image_dims(x.shape), image_dims(shape), window, maximum,
            Range(0, -128, 127),
        )
    )  # fmt: skip
    return Value(tensor, shape, layout.channels_last(len(shape)))


def _list(value: Any) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]
