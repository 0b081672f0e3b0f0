"""Ops that write a part of a tensor and give the whole."""

from __future__ import annotations

from typing import Any

from bough.ops.context import Context, Typing, argument
from bough.ops.shape import part
from bough.ops.spec import rule


def _both(x: Typing, source: Typing, written: set[int]) -> tuple[bool, ...]:
    """Which units are zero in the whole and in the part; `written`: dims of the whole that the part does not have."""
    part = iter(source.null)
    zeros = [d in written or next(part) for d in range(len(x.null))]
    return tuple(n and zero for n, zero in zip(x.null, zeros, strict=True))


@rule("slice_scatter")
def _slice_scatter(c: Context, call: Any, result: Any) -> Typing:
    x, source = c.of(call.args[0]), c.of(call.args[1])
    d = argument(call, 2, "dim", 0) % len(x.axes)
    n, size = x.axes[d].size, source.axes[d].size
    start, step = argument(call, 3, "start") or 0, argument(call, 5, "step", 1)
    start = min(max(start + n if start < 0 else start, 0), n)
    for i, (a, b) in enumerate(zip(x.axes, source.axes, strict=True)):
        if i != d or size == n:
            c.unify(a, b)
    if step == 1 and 0 < size < n:
        c.unify(part(c, x.axes[d], start, size), source.axes[d])
    elif size < n:
        for axis in (x.axes[d], source.axes[d]):
            c.freeze(axis, f"written with step {step}")
    return Typing(x.axes, _both(x, source, set()))


@rule("select_scatter")
def _select_scatter(c: Context, call: Any, result: Any) -> Typing:
    x, source = c.of(call.args[0]), c.of(call.args[1])
    d = argument(call, 2, "dim") % len(x.axes)
    n = x.axes[d].size
    at = argument(call, 3, "index") % n
    part(c, x.axes[d], at, 1)
    for a, b in zip((a for i, a in enumerate(x.axes) if i != d), source.axes, strict=True):
        c.unify(a, b)
    return Typing(x.axes, _both(x, source, {d}))


@rule("diagonal_scatter")
def _diagonal_scatter(c: Context, call: Any, result: Any) -> Typing:
    x, source = c.of(call.args[0]), c.of(call.args[1])
    n = len(x.axes)
    pair = {argument(call, 3, "dim1", 0) % n, argument(call, 4, "dim2", 1) % n}
    others = [d for d in range(n) if d not in pair]
    for axis in (*(x.axes[d] for d in pair), source.axes[-1]):
        c.freeze(axis, "its diagonal is written")
    for d, b in zip(others, source.axes, strict=False):
        c.unify(x.axes[d], b)
    zeros = dict(zip(others, source.null, strict=False))
    return Typing(x.axes, tuple(p and zeros.get(d, False) for d, p in enumerate(x.null)))


@rule("masked_scatter")
def _masked_scatter(c: Context, call: Any, result: Any) -> Typing:
    """Elements of a source in order, where a mask says. Whole rows where the mask is the same all along the last axis."""
    x, mask, source = (c.of(t) for t in call.args[:3])
    given = call.args[1]
    alike = bool(x.axes) and (not mask.axes or mask.axes[-1].size == 1 or given.stride(-1) == 0)
    rows = alike and len(source.axes) > 1 and source.axes[-1].size == x.axes[-1].size
    if rows:
        c.unify(x.axes[-1], source.axes[-1])
        if mask.axes:
            c.unify(mask.axes[-1], x.axes[-1]) if mask.axes[-1].size > 1 else None
    for axis in (*x.axes[: -1 if rows else None], *source.axes[: -1 if rows else None]):
        c.freeze(axis, "written one by one, in order")
    for axis in mask.axes if not rows else ():
        c.freeze(axis, "written one by one, in order")
    null = (*(False,) * (len(x.axes) - 1), rows and x.null[-1] and source.null[-1]) if x.axes else ()
    return Typing(x.axes, null)


@rule("segment_reduce")
def _segments(c: Context, call: Any, result: Any) -> Typing:
    """Sums, means, ... of consecutive slices along one axis."""
    x = c.of(call.args[0])
    d = call.kwargs.get("axis", 0) % len(x.axes)
    c.freeze(x.axes[d], "reduced in segments")
    plain = call.kwargs.get("initial") in (None, 0)
    axes = (*x.axes[:d], c.data(result.shape[d]), *x.axes[d + 1 :])
    return Typing(axes, tuple(n and plain for n in x.null))


@rule("put")
def _put(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    for axis in x.axes:
        c.freeze(axis, "written by flat index")
    return Typing(x.axes, (False,) * len(x.axes))


@rule("take")
def _take(c: Context, call: Any, result: Any) -> Typing:
    for axis in c.of(call.args[0]).axes:
        c.freeze(axis, "read by flat index")
    return Typing(c.of(call.args[1]).axes, (False,) * result.dim())
