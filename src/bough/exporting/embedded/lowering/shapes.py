"""Operators that move or relabel elements: reshape, permute, slice, split, concatenate, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from bough.exporting.embedded.fixed_point import quantized
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, lowers
from bough.exporting.embedded.observing import parameters
from bough.exporting.embedded.program import Fill
from bough.exporting.embedded.reading import argument, op_name


@lowers("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze")
def reshape(context: Context, node: fx.Node) -> Value:
    """Relabel the dimensions; elements move only where the order of memory does not allow it."""
    x, shape = context.value(argument(node, 0)), _shape(node)
    order = layout.reshaped(x.order, x.shape, shape)
    if order is not None and x.columns is None:
        return Value(x.tensor, shape, order)
    flat = len([s for s in shape if s != 1]) <= 1 and shape[-1] == x.tensor.size
    same = context.reading.parameters.get(node, x.quantization) == x.quantization
    if flat and same and x.columns is None and all(op_name(u) == "linear" and u.args[0] is node for u in node.users):
        logical = np.arange(x.tensor.size).reshape(x.shape).transpose(x.order).reshape(-1)
        return Value(x.tensor, shape, layout.row_major(len(shape)), logical)
    x = context.arranged(node, x, layout.row_major(len(x.shape)))
    return Value(x.tensor, shape, layout.row_major(len(shape)))


@lowers("permute", "transpose", "t")
def permute(context: Context, node: fx.Node) -> Value:
    """Relabel the dimensions; nothing moves."""
    x = context.value(argument(node, 0))
    rank = len(x.shape)
    if op_name(node) == "permute":
        dims = [int(d) % rank for d in argument(node, 1)]
    else:
        dims = list(range(rank))
        first, second = (0, rank - 1) if op_name(node) == "t" else (int(argument(node, 1)), int(argument(node, 2)))
        dims[first], dims[second] = dims[second], dims[first]
    return replace(x, shape=tuple(x.shape[d] for d in dims), order=layout.permuted(x.order, dims))


@lowers("slice")
def slice_(context: Context, node: fx.Node) -> Value:
    """Copy every step-th index of a dimension."""
    x = context.value(argument(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(x.shape)
    start, stop, step = slice(*(argument(node, i, n) for i, n in ((2, "start"), (3, "end"), (4, "step")))).indices(x.shape[dim])
    return _part(context, node, x, dim, range(start, stop, step))


@lowers("flip")
def flip(context: Context, node: fx.Node) -> Value:
    """Copy some dimensions from the last index to the first."""
    x = context.value(argument(node, 0))
    if x.columns is not None:
        raise context.refuse(node, "its input is a flattened tensor that only linear layers read")
    turned = {int(d) % len(x.shape) for d in argument(node, 1)}
    steps = layout.strides(x.order, x.shape)
    tensor = context.tensor(node, x.tensor.size, x.quantization)
    axes = [(x.shape[d], -steps[d] if d in turned else steps[d], steps[d]) for d in x.order]
    start = sum((x.shape[d] - 1) * steps[d] for d in turned)
    context.copy_strided(node, x.tensor, tensor, axes, (start, 0))
    return Value(tensor, x.shape, x.order)


@lowers("select")
def select(context: Context, node: fx.Node) -> Value:
    """Copy one index of a dimension, and drop the dimension."""
    x = context.value(argument(node, 0))
    dim = int(argument(node, 1)) % len(x.shape)
    index = int(argument(node, 2)) % x.shape[dim]
    part = _part(context, node, x, dim, range(index, index + 1))
    return _without(part, dim)


def _without(value: Value, dim: int) -> Value:
    """Drop a dimension of size 1."""
    shape = tuple(s for d, s in enumerate(value.shape) if d != dim)
    return Value(value.tensor, shape, tuple(d - (d > dim) for d in value.order if d != dim))


@lowers("split", "split_with_sizes", "chunk", "unbind")
def split(context: Context, node: fx.Node) -> tuple[Value, ...]:
    """Copy the parts that are read."""
    x = context.value(argument(node, 0))
    name = op_name(node)
    dim = int(argument(node, 1 if name == "unbind" else 2, "dim", 0)) % len(x.shape)
    sizes = [int(v.shape[dim]) if name != "unbind" else 1 for v in node.meta["val"]]
    starts = np.cumsum([0, *sizes])
    wanted = {int(argument(u, 1)): u for u in node.users}
    parts = []
    for i, size in enumerate(sizes):
        part = x
        if i in wanted:
            part = _part(context, wanted[i], x, dim, range(int(starts[i]), int(starts[i]) + size))
            if name == "unbind":
                part = _without(part, dim)
        parts.append(part)
    return tuple(parts)


@lowers("getitem")
def item(context: Context, node: fx.Node) -> Value:
    """Return one of several results."""
    results = context.values[argument(node, 0)]
    if isinstance(results, Value):
        raise context.refuse(node, "its input is one tensor")
    result: Value = results[argument(node, 1)]
    return result


def _part(context: Context, node: fx.Node, x: Value, dim: int, kept: range) -> Value:
    """Copy some indices of a dimension."""
    if len(kept) == x.shape[dim] and kept.step == 1:
        return x
    if x.columns is not None:
        raise context.refuse(node, "its input is a flattened tensor that only linear layers read")
    shape = tuple(len(kept) if d == dim else s for d, s in enumerate(x.shape))
    tensor = context.tensor(node, math.prod(shape), x.quantization)
    steps_in, steps_out = layout.strides(x.order, x.shape), layout.strides(x.order, shape)
    axes = [(shape[d], steps_in[d] * (kept.step if d == dim else 1), steps_out[d]) for d in x.order]
    context.copy_strided(node, x.tensor, tensor, axes, (kept.start * steps_in[dim], 0))
    return Value(tensor, shape, x.order)


@lowers("cat")
def concatenate(context: Context, node: fx.Node) -> Value:
    """Copy each part to its place, in the order of memory of the first; parts with other parameters by a table first."""
    parts = [context.value(n) for n in argument(node, 0)]
    shape = _shape(node)
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    order = max((p.order for p in parts), key=[p.order for p in parts].count)
    quantization = context.reading.parameters.get(node) or _covering(parts)
    tensor = context.tensor(node, math.prod(shape), quantization)
    target, start = Value(tensor, shape, order), 0
    for part in parts:
        part = context.requantized(node, part, quantization)
        context.copy(node, part, target, [start if d == dim else 0 for d in range(len(shape))], part.shape)
        start += part.shape[dim]
    return target


def _covering(parts: Sequence[Value]) -> Any:
    """Return parameters that cover those of all parts."""
    known = [p.quantization for p in parts]
    if len(set(known)) == 1:
        return known[0]
    return parameters(min(k.scale * (-128 - k.zero_point) for k in known), max(k.scale * (127 - k.zero_point) for k in known))


@lowers("pad", "constant_pad_nd")
def pad(context: Context, node: fx.Node) -> Value:
    """Fill, then copy to the middle."""
    mode = argument(node, 2, "mode", "constant") if op_name(node) == "pad" else "constant"
    if mode != "constant":
        raise context.refuse(node, f"padding by {mode!r} is not supported; pad with a constant")
    fill = argument(node, 3 if op_name(node) == "pad" else 2, "value") or 0.0
    given = [int(v) for v in argument(node, 1)]
    sides = list(zip(given[::2], given[1::2], strict=True))
    return padded(context, node, context.value(argument(node, 0)), sides, float(fill))


def padded(context: Context, node: fx.Node, x: Value, sides: Sequence[tuple[int, int]], fill: float) -> Value:
    """Return a value with a constant around it; `sides` are (before, after) from the last dimension on."""
    if any(n < 0 for side in sides for n in side):
        raise context.refuse(node, "negative padding is not supported; slice instead")
    before, shape = [0] * len(x.shape), list(x.shape)
    for i, (low, high) in enumerate(sides):
        before[-1 - i] = low
        shape[-1 - i] += low + high
    tensor = context.tensor(node, math.prod(shape), x.quantization)
    context.program.ops.append(Fill(context.source(node), (), tensor, int(quantized(fill, x.quantization))))
    target = Value(tensor, tuple(shape), x.order)
    context.copy(node, x, target, before, x.shape)
    return target


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(s) for s in node.meta["val"].shape)
