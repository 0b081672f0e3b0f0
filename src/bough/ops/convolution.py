"""Convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import KERNEL, Context, Typing, argument
from bough.ops.matmul import type_bias
from bough.ops.meta import demand
from bough.ops.rewriting import noted
from bough.ops.spec import Place, RecordedOp, contracts, on_shapes, rule, traits
from bough.spaces import Product, Space, freeze, is_frozen, product


@rule("convolution", "_convolution")
def _convolution(c: Context, call: Any, result: Any) -> Typing:
    x, w, bias = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "bias")
    transposed, groups = call.args[6], call.args[8]
    kernel = w.axes[2:]
    for k in kernel:
        if k.size > 1:
            freeze(k, KERNEL)
    inner, outer = (w.axes[0], w.axes[1]) if transposed else (w.axes[1], w.axes[0])
    null_in = x.null[1] or w.null[0 if transposed else 1]
    columns = enumerate(zip(x.axes[2:], kernel, result.shape[2:], strict=True))
    spatial = tuple(_position(c, call, i, axis, k.size, n) for i, (axis, k, n) in columns)
    counted = x.axes[2:] if transposed else spatial
    if groups == 1:
        c.contract(x.axes[1], inner, null_in)
        c.macs(x.axes[0], *counted, inner, outer, *kernel)
    else:
        g = c.fresh(groups)
        c.notes.integers["groups"] = g
        if transposed:  # weight [G x I, O, ...]
            each_in, each_out = c.fresh(inner.size // groups), outer
            c.unify(inner, Product((g, each_in)))
            outer = product(g, each_out)
        else:  # weight [G x O, I, ...]
            each_in, each_out = inner, c.fresh(outer.size // groups)
            c.unify(outer, Product((g, each_out)))
        c.unify(x.axes[1], Product((g, each_in)))
        c.contract(each_in, each_in, null_in)
        c.consume(g)
        c.macs(x.axes[0], *counted, g, each_in, each_out, *kernel)
    c.mark(GroupKind.CHANNEL, outer)
    null = w.null[1 if transposed else 0] or (groups == x.axes[1].size == outer.size and x.null[1])  # or depthwise
    null = type_bias(c, bias, outer) and null
    zero = tuple(is_frozen(a) or (n and bias is None) for a, n in zip(spatial, x.null[2:], strict=True))
    return Typing((x.axes[0], outer, *spatial), (x.null[0] and bias is None, null, *zero))


def _position(c: Context, call: Any, i: int, axis: Space, kernel: int, size: int) -> Space:
    """A spatial axis passes a kernel of size 1 as it is; a larger one sees which positions are neighbours."""
    stride, padding = (given[i if len(given) > 1 else 0] for given in call.args[3:5])
    if kernel == stride == 1 and padding == 0 and size == axis.size:
        return axis
    c.freeze(axis, "spatial position")
    return c.data(size, "spatial position")


@on_shapes("convolution")
def _convolution_on_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    n = weight.dim() - 2
    given = (stride, padding, dilation, output_padding)
    plain = x.dim() == n + 2 and x.is_contiguous() and weight.is_contiguous() and all(len(g) == n for g in given)
    if transposed or not plain or x.dtype != weight.dtype:
        return NotImplemented
    outputs = weight.shape[0]
    demand(x.shape[1] == weight.shape[1] * groups and outputs % groups == 0, x, weight)
    demand(bias is None or bias.shape == (outputs,), weight, bias)
    wide = [(x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i] + 1 for i in range(n)]
    demand(all(size > 0 for size in wide), x, weight)
    return x.new_empty((x.shape[0], outputs, *wide))


@contracts("convolution", "_convolution")
def _over_inputs(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (0, 1), (1, 0 if op.detail[6] else 1)


_BY_RANK = [f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)]
traits(*_BY_RANK, "convolution", rewrite=noted("groups"))
