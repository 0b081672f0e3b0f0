"""Run an integer program in numpy, op by op, from the formulas: the reference that the C code is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.exporting.embedded import program as p
from bough.exporting.embedded.fixed_point import clamped, requantize

Memory = dict[int, NDArray[np.int8]]


def run_program(program: p.Program, inputs: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
    """Return the outputs of a program for int8 inputs, all as flat arrays in memory order.

    Args:
        program: the program.
        inputs: one array per input of the program, in memory order, any shape.
    """
    memory = run_all(program, inputs)
    return [memory[id(port.tensor)] for port in program.outputs]


def run_all(program: p.Program, inputs: Sequence[NDArray[np.int8]]) -> Memory:
    """Return every tensor that a program computes, by the `id` of the tensor; arguments as for `run_program`."""
    memory: Memory = {}
    for port, values in zip(program.inputs, inputs, strict=True):
        memory[id(port.tensor)] = np.asarray(values, dtype=np.int8).reshape(-1)
    for op in program.ops:
        target = memory.setdefault(id(op.output), np.zeros(op.output.size, dtype=np.int8))
        sources = [memory[id(t)] if t.constant is None else t.constant.reshape(-1) for t in op.inputs]
        _KERNELS[type(op)](op, target, *sources)
    return memory


def _windows(x: NDArray[Any], in_dims: p.Dims, out_dims: p.Dims, window: p.Window, empty: int) -> NDArray[np.int64]:
    """Return the elements under each window [N, oh, ow, kh, kw, C]; `empty` where a window lies outside the input."""
    n, height, width, channels = in_dims
    _, rows, columns, _ = out_dims
    y = _positions(rows, 0, window)
    x_at = _positions(columns, 1, window)
    padded = np.full((n, height + 1, width + 1, channels), empty, dtype=np.int64)
    padded[:, :height, :width] = x.reshape(in_dims)
    y = np.where((y >= 0) & (y < height), y, height)
    x_at = np.where((x_at >= 0) & (x_at < width), x_at, width)
    return padded[:, y[:, None, :, None], x_at[None, :, None, :]]


def _positions(count: int, axis: int, window: p.Window) -> NDArray[np.int64]:
    """Return the input index of each tap [count, kernel] of the windows along an axis."""
    starts = np.arange(count) * window.stride[axis] - window.padding[axis]
    return starts[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]


def _conv(op: p.Conv, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    zero = op.inputs[0].quantization.zero_point
    taps = _windows(x, op.in_dims, op.out_dims, op.window, zero) - zero
    weight = op.weight.astype(np.int64)
    channels, results = op.in_dims[3], op.out_dims[3]
    if op.depthwise:
        sums = (np.repeat(taps, results // channels, axis=-1) * weight[0]).sum((3, 4))
    else:
        groups = channels // weight.shape[3]
        split = taps.reshape(*taps.shape[:5], groups, -1)
        per_group = weight.reshape(groups, results // groups, *weight.shape[1:])
        sums = np.einsum("nyxhwgc,gohwc->nyxgo", split, per_group, optimize=True).reshape(op.out_dims)
    scaled = requantize(sums + op.bias, op.factors.multiplier, op.factors.shift)
    out[:] = clamped(scaled, op.range).reshape(-1)


def _fully_connected(op: p.FullyConnected, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    centred = x.reshape(op.rows, -1).astype(np.int64) - op.inputs[0].quantization.zero_point
    sums = centred @ op.weight.astype(np.int64).T + op.bias
    out[:] = clamped(requantize(sums, op.factors.multiplier, op.factors.shift), op.range).reshape(-1)


def _add(op: p.Add, out: NDArray[np.int8], a: NDArray[np.int8], b: NDArray[np.int8]) -> None:
    total = np.zeros(len(a), dtype=np.int64)
    for i, values in enumerate((a, np.tile(b, op.repeats))):
        centred = values.astype(np.int64) - op.inputs[i].quantization.zero_point
        total += requantize(centred << op.left_shift, op.factors.multiplier[i], op.factors.shift[i])
    out[:] = clamped(requantize(total, op.factors.multiplier[2], op.factors.shift[2]), op.range)


def _mul(op: p.Mul, out: NDArray[np.int8], a: NDArray[np.int8], b: NDArray[np.int8]) -> None:
    first = a.astype(np.int64) - op.inputs[0].quantization.zero_point
    second = np.tile(b, op.repeats).astype(np.int64) - op.inputs[1].quantization.zero_point
    out[:] = clamped(requantize(first * second, op.factors.multiplier[0], op.factors.shift[0]), op.range)


def _pool(op: p.Pool, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    if op.maximum:
        result = _windows(x, op.in_dims, op.out_dims, op.window, -(2**31)).max((3, 4))
    else:
        inside = _windows(np.ones(len(x), dtype=np.int8), op.in_dims, op.out_dims, op.window, 0).sum((3, 4))
        sums = _windows(x, op.in_dims, op.out_dims, op.window, 0).sum((3, 4))
        rounded = (np.abs(sums) + inside // 2) // inside
        result = np.where(sums > 0, rounded, -rounded)
    out[:] = np.clip(result, op.range.low, op.range.high).astype(np.int8).reshape(-1)


def _mean(op: p.Mean, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    centred = x.reshape(op.outer, op.count, op.inner).astype(np.int64) - op.inputs[0].quantization.zero_point
    scaled = requantize(centred.sum(1), op.factors.multiplier[0], op.factors.shift[0])
    out[:] = clamped(scaled, op.range).reshape(-1)


def _lookup(op: p.Lookup, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    out[:] = op.table[x.astype(np.int64) + 128]


def _copy(op: p.Copy, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    grid = np.indices(op.dims).reshape(len(op.dims), -1).astype(np.int64)
    source = op.start_in + np.asarray(op.in_strides) @ grid
    out[op.start_out + np.asarray(op.out_strides) @ grid] = x[source]


def _fill(op: p.Fill, out: NDArray[np.int8]) -> None:
    out[:] = op.value


def _softmax(op: p.Softmax, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    rows = x.reshape(op.rows, op.columns).astype(np.int64)
    powers = op.table.astype(np.int64)[rows.max(1, keepdims=True) - rows]
    total = powers.sum(1, keepdims=True)
    out[:] = np.minimum((powers * 256 + total // 2) // total - 128, 127).astype(np.int8).reshape(-1)


def _resize(op: p.Resize, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    image = x.reshape(op.in_dims).astype(np.int64)
    low_y, high_y, weight_y = op.rows.astype(np.int64)
    low_x, high_x, weight_x = op.columns.astype(np.int64)

    def across(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        w = weight_x[None, None, :, None]
        result: NDArray[np.int64] = image[:, rows][:, :, low_x] * (2048 - w) + image[:, rows][:, :, high_x] * w
        return result

    w = weight_y[None, :, None, None]
    total = across(low_y) * (2048 - w) + across(high_y) * w
    out[:] = ((total + (1 << 21)) >> 22).astype(np.int8).reshape(-1)


def _matmul(op: p.MatMul, out: NDArray[np.int8], left: NDArray[np.int8], right: NDArray[np.int8]) -> None:
    def spread(x: NDArray[np.int8], i: int, sizes: tuple[int, ...], strides: p.Dims) -> NDArray[np.int64]:
        at = sum(s * axis for s, axis in zip(strides, np.ix_(*(np.arange(n) for n in sizes)), strict=True))
        return x[at].astype(np.int64) - op.inputs[i].quantization.zero_point

    a = spread(left, 0, (*op.batches, op.rows, op.depth), op.left_strides)
    b = spread(right, 1, (*op.batches, op.columns, op.depth), op.right_strides)
    sums = np.einsum("xyrd,xycd->xyrc", a, b)
    out[:] = clamped(requantize(sums, op.factors.multiplier[0], op.factors.shift[0]), op.range).reshape(-1)


def _layer_norm(op: p.LayerNorm, out: NDArray[np.int8], x: NDArray[np.int8]) -> None:
    rows = x.reshape(op.rows, op.columns).astype(np.int64)
    centred = op.columns * rows - rows.sum(1, keepdims=True)
    spread = op.columns * (rows**2).sum(1) - rows.sum(1) ** 2 + op.epsilon
    roots = np.array([[max(1, math.isqrt(int(v) << 16))] for v in spread], dtype=np.int64)  # 256 times the deviation
    scaled = 65536 * np.abs(centred) + roots // 2
    units = np.sign(centred) * (scaled // roots)  # 256 times the normalized value
    total = requantize(units * op.weight + op.bias, op.factors.multiplier[0], op.factors.shift[0])
    out[:] = clamped(total, op.range).reshape(-1)


_KERNELS: dict[type[p.Op], Callable[..., None]] = {
    p.Conv: _conv, p.FullyConnected: _fully_connected, p.Add: _add, p.Mul: _mul, p.Pool: _pool, p.Mean: _mean,
    p.Lookup: _lookup, p.Copy: _copy, p.Fill: _fill, p.Softmax: _softmax, p.Resize: _resize,
    p.MatMul: _matmul, p.LayerNorm: _layer_norm,
}  # fmt: skip
