"""Products of two activations, and layer norms: what attention needs besides linear layers and softmax."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from bough.exporting.embedded.fixed_point import bounds, factors
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, lowers
from bough.exporting.embedded.lowering.linear import last_innermost
from bough.exporting.embedded.program import Dims, LayerNorm, MatMul
from bough.exporting.embedded.reading import argument

_DEEPEST = 2**15  # terms of a sum of products of int8 that 32 bits hold
_WIDEST = 2**12  # columns of a layer norm, so that a normalized value times a weight fits 32 bits
_UNIT = 256  # what the kernel multiplies normalized values by


@lowers("matmul", "bmm")
def matmul(context: Context, node: fx.Node) -> Value:
    """Lower a product of two activations; both are read where they lie, whatever their order in memory."""
    left, right = context.value(argument(node, 0)), context.value(argument(node, 1))
    shape = tuple(int(s) for s in node.meta["val"].shape)
    rank = len(shape)
    if min(len(left.shape), len(right.shape)) < 2 or rank > 4:
        raise context.refuse(node, f"it multiplies {list(left.shape)} and {list(right.shape)}; 2 to 4 dimensions are supported")
    if left.columns is not None or right.columns is not None:
        raise context.refuse(node, "its input is a flattened tensor that only linear layers read; use reshape once")
    depth = left.shape[-1]
    if depth > _DEEPEST:
        raise context.refuse(node, f"it sums {depth} products; at most {_DEEPEST} are supported")
    quantization, low, high = context.result(node)
    tensor = context.tensor(node, math.prod(shape), quantization)
    scale = left.quantization.scale * right.quantization.scale / quantization.scale
    first, second, rows, columns = ((1,) * (4 - rank) + shape)[-4:]
    *batches, down, across = _strides(right)
    context.program.ops.append(
        MatMul(
            context.source(node), (left.tensor, right.tensor), tensor, (first, second), rows, columns, depth, _strides(left),
            (batches[0], batches[1], across, down), factors([scale]), bounds(quantization, low, high),
        )
    )  # fmt: skip
    return Value(tensor, shape, layout.row_major(rank))


def _strides(value: Value) -> Dims:
    """Return the strides of the last four dimensions; 0 where there is none, or it is repeated."""
    steps = [0 if size == 1 else step for size, step in zip(value.shape, layout.strides(value.order, value.shape), strict=True)]
    first, second, row, column = ([0] * 4 + steps)[-4:]
    return first, second, row, column


@lowers("layer_norm", "native_layer_norm")
def layer_norm(context: Context, node: fx.Node) -> Value | tuple[Value, ...]:
    """Lower a layer norm over the last dimension."""
    x = context.value(argument(node, 0))
    size = [int(s) for s in argument(node, 1)]
    weight, bias = (context.array(argument(node, i, name)) for i, name in ((2, "weight"), (3, "bias")))
    if len(size) != 1 or size[0] > _WIDEST:
        raise context.refuse(node, f"it normalizes over {size}; one dimension of at most {_WIDEST} is supported")
    x = last_innermost(context, node, x, len(x.shape) - 1)
    item = next((u for u in node.users if u.name.startswith("getitem")), node)
    quantization, low, high = context.result(item)
    columns = size[0]
    real = np.ones(columns) if weight is None else weight
    shift = np.zeros(columns) if bias is None else bias
    step = max(float(np.abs(real).max()) / 32767, float(np.abs(shift).max()) / (2.0**29 * _UNIT), 1e-10)
    epsilon = float(argument(node, 4, "eps", 1e-5)) * (columns / x.quantization.scale) ** 2
    tensor = context.tensor(node, x.tensor.size, quantization)
    context.program.ops.append(
        LayerNorm(
            context.source(node), (x.tensor,), tensor, x.tensor.size // columns, columns, round(min(epsilon, 2.0**46)),
            np.round(real / step).astype(np.int16), np.round(shift * _UNIT / step).astype(np.int32),
            factors([step / (_UNIT * quantization.scale)]), bounds(quantization, low, high),
        )
    )  # fmt: skip
    result = Value(tensor, x.shape, x.order)
    return result if item is node else (result,)
