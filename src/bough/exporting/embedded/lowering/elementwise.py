"""Sums, products and functions of one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from bough.exporting.embedded.fixed_point import bounds, factors
from bough.exporting.embedded.folding import CLAMPS
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, lowers
from bough.exporting.embedded.observing import FIXED
from bough.exporting.embedded.program import Add, Mul, Tensor
from bough.exporting.embedded.reading import argument, op_name

_LEFT_SHIFT = 20  # bits of precision that both summands are given before they are scaled


def _aten(node: fx.Node) -> Callable[[Any], Any]:
    """Return the operator itself as a function of an array, with its other arguments."""

    def apply(values: Any) -> Any:
        given = torch.as_tensor(np.asarray(values, dtype=np.float32))
        return node.target(given, *node.args[1:], **node.kwargs).numpy()  # type: ignore[operator]

    return apply


@lowers(
    *CLAMPS, "sigmoid", "tanh", "hardswish", "hardsigmoid", "silu", "gelu", "elu", "leaky_relu", "softplus", "mish", "neg",
    "abs", "exp", "sqrt", "rsqrt", "square", "clamp_min", "clamp_max", "log", "selu", "celu", "hardshrink", "erf",
    "requantized", "logit", "reciprocal", "sin", "cos", "log_sigmoid", "softsign",
)  # fmt: skip
def function_of_one(context: Context, node: fx.Node) -> Value:
    """Lower any function of one value to a table."""
    x = context.value(argument(node, 0))
    quantization = context.reading.parameters.get(node) or FIXED.get(op_name(node))
    if quantization is None:
        raise context.refuse(node, "it has no quantization parameters")
    return context.lookup(node, x, _aten(node), quantization)


@lowers("add", "sub", "mul", "div", "rsub", "pow")
def two_operands(context: Context, node: fx.Node) -> Value:
    """Lower a sum or product of two tensors to kernels, one with a number to a table."""
    a, b = node.args[:2]
    name = op_name(node)
    quantization, low, high = context.result(node)
    tensors = [n for n in (a, b) if isinstance(n, fx.Node)]
    varying = [n for n in tensors if n not in context.reading.constants]
    scalar = all(n in varying or context.reading.constants[n].numel() == 1 for n in tensors)
    if len(varying) == 1 and scalar and (len(tensors) == 1 or tuple(node.meta["val"].shape) == context.value(varying[0]).shape):
        return context.lookup(node, context.value(varying[0]), _with_number(context, node, low, high), quantization)
    alpha = node.kwargs.get("alpha", 1)
    if name not in ("add", "sub", "mul") or len(tensors) < 2 or alpha != 1:
        raise context.refuse(node, "only sums, differences and products of two tensors are supported; write it with these")
    return _binary(context, node, name, context.value(a), context.value(b))


def _with_number(context: Context, node: fx.Node, low: float, high: float) -> Callable[[Any], Any]:
    """Return the op as a function of its one tensor that varies, clamped by a fused activation."""

    def apply(values: Any) -> Any:
        given = torch.as_tensor(np.asarray(values, dtype=np.float32))
        args = [
            a
            if not isinstance(a, fx.Node)
            else context.reading.constants[a].reshape(())
            if a in context.reading.constants
            else given
            for a in node.args
        ]
        return np.clip(node.target(*args, **node.kwargs).numpy(), low, high)  # type: ignore[operator]

    return apply


def _binary(context: Context, node: fx.Node, name: str, a: Value, b: Value) -> Value:
    shape = tuple(int(s) for s in node.meta["val"].shape)
    if name != "sub" and (a.shape != shape or a.tensor.constant is not None) and b.shape == shape:
        a, b = b, a
    a = _expanded(context, node, _of_rank(a, len(shape)), shape, None)
    b, repeats = _repeated(context, node, _of_rank(b, len(shape)), a)
    quantization, low, high = context.result(node)
    first, second, result = a.quantization.scale, b.quantization.scale, quantization.scale
    tensor = context.tensor(node, a.tensor.size, quantization)
    limits, inputs = bounds(quantization, low, high), (a.tensor, b.tensor)
    if name == "mul":
        scales = factors([first * second / result])
        context.program.ops.append(Mul(context.source(node), inputs, tensor, repeats, scales, limits))
    else:
        largest = 2 * max(first, second)
        scales = factors([first / largest, second / largest, largest / (2**_LEFT_SHIFT * result)])
        if name == "sub":
            scales.multiplier[1] *= -1
        context.program.ops.append(Add(context.source(node), inputs, tensor, repeats, scales, limits, _LEFT_SHIFT))
    return replace(a, tensor=tensor, shape=shape)


def _of_rank(value: Value, rank: int) -> Value:
    """Return a value with dimensions of size 1 in front."""
    missing = rank - len(value.shape)
    if not missing:
        return value
    order = (*range(missing), *(d + missing for d in value.order))
    return replace(value, shape=(1,) * missing + value.shape, order=order)


def _repeated(context: Context, node: fx.Node, b: Value, a: Value) -> tuple[Value, int]:
    """Return the second operand in the memory order of the first, and how often it repeats there."""
    if b.shape == a.shape:
        return context.arranged(node, b, a.order), 1
    inner = 0
    while inner < len(a.order) and b.shape[a.order[-1 - inner]] == a.shape[a.order[-1 - inner]]:
        inner += 1
    outer = a.order[: len(a.order) - inner]
    if all(b.shape[d] == 1 for d in outer):
        return context.arranged(node, b, a.order), math.prod(a.shape[d] for d in outer)
    return _expanded(context, node, b, a.shape, a.order), 1


def _expanded(context: Context, node: fx.Node, value: Value, shape: tuple[int, ...], order: tuple[int, ...] | None) -> Value:
    """Return a value repeated along dimensions of size 1 to a shape."""
    target_order = value.order if order is None else order
    if value.shape == shape:
        return value if order is None else context.arranged(node, value, target_order)
    steps_in, steps_out = layout.strides(value.order, value.shape), layout.strides(target_order, shape)
    axes = [(shape[d], steps_in[d] if value.shape[d] != 1 else 0, steps_out[d]) for d in target_order]
    tensor: Tensor = context.tensor(node, math.prod(shape), value.quantization)
    context.copy_strided(node, value.tensor, tensor, axes, (0, 0))
    return Value(tensor, shape, target_order)


@lowers("expand")
def expand(context: Context, node: fx.Node) -> Value:
    """Lower an expansion by a copy with strides of zero."""
    shape = tuple(int(s) for s in node.meta["val"].shape)
    return _expanded(context, node, _of_rank(context.value(argument(node, 0)), len(shape)), shape, None)
