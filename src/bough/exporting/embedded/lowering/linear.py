"""Linear layers and softmax."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from torch import fx

from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, lowers
from bough.exporting.embedded.lowering.weights import quantized_layer
from bough.exporting.embedded.observing import FIXED
from bough.exporting.embedded.program import FullyConnected, Softmax
from bough.exporting.embedded.reading import argument

_ONE = 2**23  # exp(0) in the table of a softmax; a sum over 2**40 of them fits 64 bits


@lowers("linear")
def linear(context: Context, node: fx.Node) -> Value:
    """Lower a linear layer over the last dimension."""
    x = context.value(argument(node, 0))
    layer = quantized_layer(context, node, argument(node, 1), argument(node, 2, "bias"), x.quantization)
    weight = layer.weight
    if x.columns is not None:
        weight = weight[:, x.columns]
    else:
        x = last_innermost(context, node, x, len(x.shape) - 1)
    rows, size = math.prod(x.shape[:-1]), weight.shape[0]
    tensor = context.tensor(node, rows * size, context.result(node)[0])
    context.program.ops.append(
        FullyConnected(
            context.source(node),
            (x.tensor,),
            tensor,
            rows,
            np.ascontiguousarray(weight),
            layer.bias,
            layer.factors,
            layer.range,
        )
    )
    return Value(tensor, (*x.shape[:-1], size), x.order)


def last_innermost(context: Context, node: fx.Node, x: Value, dim: int) -> Value:
    """Return a value with a dimension innermost in memory, the others as they are if it is so already."""
    order = [d for d in x.order if x.shape[d] != 1 and d != dim]
    ones = [d for d in x.order if x.shape[d] == 1 and d != dim]
    if layout.same_memory(x.order, (*ones, *order, dim), x.shape):
        return replace(x, order=(*ones, *order, dim))
    rank = len(x.shape)
    return context.moved(node, x, (*(d for d in range(rank) if d != dim), dim))


@lowers("softmax", "_softmax")
def softmax(context: Context, node: fx.Node) -> Value:
    """Lower a softmax: a table of exponentials, their sum, and an integer division."""
    x = context.value(argument(node, 0))
    dim = int(argument(node, 1)) % len(x.shape)
    x = last_innermost(context, node, x, dim)
    table = np.round(np.exp(-np.arange(256) * x.quantization.scale) * _ONE).astype(np.int32)
    tensor = context.tensor(node, x.tensor.size, FIXED["softmax"])
    columns = x.shape[dim]
    context.program.ops.append(Softmax(context.source(node), (x.tensor,), tensor, x.tensor.size // columns, columns, table))
    return replace(x, tensor=tensor)
