"""Ops over spatial positions: pooling, resizing, padding, shuffling pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bough.ops.context import Context, Typing
from bough.ops.meta import demand
from bough.ops.rewriting import noted
from bough.ops.spec import on_shapes, rule, traits
from bough.spaces import Product, concat, is_frozen, product

_WINDOW = "a window slides over this axis, so removing an index would change the results of its neighbours"


def _spatial(c: Context, call: Any, result: Any, dims: int) -> Any:
    x = c.of(call.args[0])

    def typed(r: Any) -> Typing:
        kept = r.dim() - dims
        for axis in x.axes[kept:]:
            c.freeze(axis, _WINDOW)
        axes = (*x.axes[:kept], *(c.data(n, _WINDOW) for n in r.shape[kept:]))
        return Typing(axes, (*x.null[:kept], *(True,) * dims))

    return [typed(r) for r in result] if isinstance(result, (tuple, list)) else typed(result)


def _over(dims: int) -> Any:
    return lambda c, call, result: _spatial(c, call, result, dims)


for _d in (1, 2, 3):
    rule(
        *(f"{name}{_d}d" for name in ("avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "max_pool")),
        *(f"{name}{_d}d" for name in ("reflection_pad", "replication_pad", "upsample_nearest", "_upsample_nearest_exact")),
        f"max_pool{_d}d_with_indices",
    )(_over(_d))
rule("upsample_linear1d")(_over(1))
rule(
    "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"
)(_over(2))
rule("upsample_trilinear3d")(_over(3))


@rule("pixel_shuffle")
def _pixel_shuffle(c: Context, call: Any, result: Any) -> Typing:
    x, r = c.of(call.args[0]), call.args[1]
    channels = c.fresh(result.shape[-3])
    rows, columns = c.data(r, "pixel shuffle"), c.data(r, "pixel shuffle")
    c.unify(x.axes[-3], Product((channels, rows, columns)))
    spatial = (product(x.axes[-2], rows), product(x.axes[-1], columns))
    return Typing((*x.axes[:-3], channels, *spatial), x.null)


@rule("pixel_unshuffle")
def _pixel_unshuffle(c: Context, call: Any, result: Any) -> Typing:
    x, r = c.of(call.args[0]), call.args[1]
    for axis in x.axes[-2:]:
        c.freeze(axis, "spatial position")
    channels = product(x.axes[-3], c.data(r, "pixel unshuffle"), c.data(r, "pixel unshuffle"))
    return Typing((*x.axes[:-3], channels, *(c.data(n, "spatial position") for n in result.shape[-2:])), x.null)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(c: Context, call: Any, result: Any) -> Typing:
    x, groups = c.of(call.args[0]), call.args[1]
    g, k = c.fresh(groups), c.fresh(x.axes[1].size // groups)
    c.notes.integers["groups"] = g
    c.notes.counts.append((1, g))
    c.unify(x.axes[1], Product((g, k)))
    return Typing((x.axes[0], product(k, g), *x.axes[2:]), x.null)


@rule("constant_pad_nd")
def _pad(c: Context, call: Any, result: Any) -> Typing:
    x, pad = c.of(call.args[0]), call.args[1]
    value = call.args[2] if len(call.args) > 2 else 0
    axes, null = list(x.axes), list(x.null)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        d = len(axes) - 1 - i
        if before < 0 or after < 0:
            c.freeze(axes[d], "cropped by padding")
            axes[d] = c.data(result.shape[d])
        elif before or after:
            axes[d] = concat(c.data(before, "padding"), axes[d], c.data(after, "padding"))
            null = [n and (value == 0 or (i == d and is_frozen(axes[d]))) for i, n in enumerate(null)]
    return Typing(tuple(axes), tuple(null))


@rule("im2col")
def _im2col(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    kernel = result.shape[-2] // x.axes[-3].size
    axes = (*x.axes[:-3], product(x.axes[-3], c.data(kernel, "kernel position")), c.data(result.shape[-1]))
    return Typing(axes, (*x.null[:-2], True))


@rule("col2im")
def _col2im(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    channels = c.fresh(result.shape[-3])
    c.unify(x.axes[-2], Product((channels, c.data(x.axes[-2].size // channels.size, "kernel position"))))
    spatial = tuple(c.data(n, "spatial position") for n in result.shape[-2:])
    return Typing((*x.axes[:-2], channels, *spatial), (*x.null[:-1], True, True))


@on_shapes("max_pool2d_with_indices")
def _max_pool_on_shapes(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil: bool = False
) -> Any:
    if ceil or x.dim() != 4 or not x.is_contiguous() or not x.is_floating_point():
        return NotImplemented
    (k, s, p, d) = (list(g) * (2 // len(g)) for g in (kernel, stride or kernel, padding, dilation))
    if any(len(g) != 2 for g in (k, s, p, d)) or any(2 * p[i] > k[i] for i in range(2)):
        return NotImplemented
    wide = [(x.shape[i + 2] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in range(2)]
    demand(all(size > 0 for size in wide), x)
    shape = (*x.shape[:2], *wide)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


traits("channel_shuffle", rewrite=noted("groups"))
