"""Ops that rearrange axes: view, permute, cat, split, slice, expand, repeat."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bough.ops.context import Context, Typing, argument, same
from bough.ops.meta import demand, in_rows
from bough.ops.spec import on_shapes, rule, traits
from bough.spaces import UNIT, Product, Space, Sum, concat, is_frozen, normal, product

rule("channels_last", "_conj_physical")(same)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "view_copy")
def _view(c: Context, call: Any, result: Any) -> Typing:
    """Runs of axes with equal numbers of elements are the same Product."""
    x = c.of(call.args[0])
    if len(call.args) > 1 and isinstance(call.args[1], type(result.dtype)):
        return same(c, call, result)
    shape = tuple(result.shape)
    axes: list[Space] = []
    null: list[bool] = []
    i = 0
    d = 0
    old = [a.size for a in x.axes]
    if 0 in shape:
        return Typing(tuple(c.data(n) for n in shape), (False,) * len(shape))
    while d < len(shape):
        if shape[d] == 1:
            axes.append(UNIT)
            null.append(True)
            d += 1
            continue
        while old[i] == 1:
            i += 1
        start, first, a, b = i, d, old[i], shape[d]
        while a != b:
            if a < b:
                i += 1
                a *= old[i]
            else:
                d += 1
                b *= shape[d]
        i += 1
        d += 1
        run, out = x.axes[start:i], [n for n in shape[first:d] if n != 1]
        zero = all(n or is_frozen(s) for s, n in zip(run, x.null[start:i], strict=True))
        spaces = _split_run(c, run, out)
        queue = iter(spaces)
        for n in shape[first:d]:
            axes.append(UNIT if n == 1 else next(queue))
            null.append(n == 1 or zero)
    return Typing(tuple(axes), tuple(null), x.weight)


def _split_run(c: Context, run: tuple[Space, ...], out: list[int]) -> list[Space]:
    whole = product(*run)
    if len(out) == 1:
        return [whole]
    parts = [c.fresh(n) for n in out]
    if isinstance(whole, Product) and [f.size for f in whole.factors] == out:
        return list(whole.factors)
    c.unify(whole, Product(parts))
    return parts


@rule("permute", "numpy_T", "movedim")
def _permute(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    order = [d % len(x.axes) for d in call.args[1]]
    return Typing(tuple(x.axes[d] for d in order), tuple(x.null[d] for d in order), x.weight)


@rule("transpose", "t", "swapaxes")
def _transpose(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    n = len(x.axes)
    if n < 2:
        return Typing(x.axes, x.null, x.weight)
    a, b = (call.args[1] % n, call.args[2] % n) if len(call.args) > 2 else (0, 1)
    order = list(range(n))
    order[a], order[b] = b, a
    return Typing(tuple(x.axes[d] for d in order), tuple(x.null[d] for d in order), x.weight)


@rule("unsqueeze")
def _unsqueeze(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    d = call.args[1] % (len(x.axes) + 1)
    return Typing((*x.axes[:d], UNIT, *x.axes[d:]), (*x.null[:d], True, *x.null[d:]), x.weight)


@rule("squeeze")
def _squeeze(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    n = len(x.axes)
    given = argument(call, 1, "dim")
    dims = range(n) if given is None else [d % n for d in (given if isinstance(given, (list, tuple)) else [given])] if n else []
    keep = [d for d in range(n) if d not in set(dims) or x.axes[d].size != 1]
    return Typing(tuple(x.axes[d] for d in keep), tuple(x.null[d] for d in keep), x.weight)


@rule("expand", "expand_as")
def _expand(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    new = result.dim() - len(x.axes)
    axes: list[Space] = [c.fresh(n) for n in result.shape[:new]]
    null = [False] * new
    for d, axis in enumerate(x.axes):
        n = result.shape[new + d]
        axes.append(axis if axis.size == n else c.fresh(n))
        null.append(axis.size == n and x.null[d])
    return Typing(tuple(axes), tuple(null))


@rule("repeat")
def _repeat(c: Context, call: Any, result: Any) -> Typing:
    x, times = c.of(call.args[0]), call.args[1]
    new = len(times) - len(x.axes)
    axes: list[Space] = [c.fresh(n) for n in times[:new]]
    axes += [product(c.fresh(r), a) for r, a in zip(times[new:], x.axes, strict=True)]
    null = [r == 1 and n for r, n in zip(times[new:], x.null, strict=True)]
    return Typing(tuple(axes), (*(False,) * new, *null))


@rule("cat", "concat")
def _cat(c: Context, call: Any, result: Any) -> Typing:
    parts = [c.of(t) for t in call.args[0]]
    parts = [p for p in parts if len(p.axes) == result.dim() and all(a.size for a in p.axes)]
    if not parts:
        return Typing(tuple(c.data(n) for n in result.shape), (False,) * result.dim())
    d = argument(call, 1, "dim", 0) % result.dim()
    first = parts[0]
    for other in parts[1:]:
        for i, (a, b) in enumerate(zip(first.axes, other.axes, strict=True)):
            if i != d:
                c.unify(a, b)
    axes = list(first.axes)
    axes[d] = concat(*(p.axes[d] for p in parts))
    null = [all(p.null[i] or is_frozen(p.axes[i]) for p in parts) for i in range(len(axes))]
    return Typing(tuple(axes), tuple(null), all(p.weight for p in parts))


@rule("block_diag")
def _block_diag(c: Context, call: Any, result: Any) -> Typing:
    """Matrices along a diagonal, zeros elsewhere."""
    parts = [c.of(t) for t in call.args[0]]
    if any(len(p.axes) != 2 for p in parts):
        for axis in (a for p in parts for a in p.axes):
            c.freeze(axis, "a row or a number among the blocks of a matrix")
        return Typing(c.empty(result), (False, False))
    null = tuple(all(p.null[d] for p in parts) for d in (0, 1))
    return Typing(tuple(concat(*(p.axes[d] for p in parts)) for d in (0, 1)), null, all(p.weight for p in parts))


@rule("stack")
def _stack(c: Context, call: Any, result: Any) -> Typing:
    parts = [c.of(t) for t in call.args[0]]
    d = argument(call, 1, "dim", 0) % result.dim()
    for other in parts[1:]:
        for a, b in zip(parts[0].axes, other.axes, strict=True):
            c.unify(a, b)
    null = [all(p.null[i] for p in parts) for i in range(result.dim() - 1)]
    new = c.data(len(parts), "stacked")
    axes = parts[0].axes
    return Typing((*axes[:d], new, *axes[d:]), (*null[:d], True, *null[d:]), all(p.weight for p in parts))


def _why_frozen(axis: Space) -> Any:
    """The reason of a frozen axis, for parts of it."""
    return next((a.reason for a in normal(axis).atoms), "data")


def segments(c: Context, axis: Space, sizes: list[int]) -> list[Space]:
    """`axis` as consecutive segments; data stays data and is not distinguished."""
    if is_frozen(axis) and len(normal(axis).atoms) <= 1:
        return [c.data(n, _why_frozen(axis)) for n in sizes]
    parts = [c.fresh(n) if n else c.data(0) for n in sizes]
    if len(parts) == 1:
        return [axis]
    c.unify(axis, Sum([p for p in parts if p.size]))
    if any(p.size == 1 for p in parts):
        c.singled.append((axis, c.reason("the model takes each of these units by its index")))
    return parts


def part(c: Context, axis: Space, start: int, size: int) -> Space:
    """One segment of `axis`; the op's index is the size of what lies before it."""
    before, here, _ = segments(c, axis, [start, size, axis.size - start - size])
    if start:
        c.notes.integers["start"] = before
        c.notes.counts.append((3 if c.name.endswith("_scatter") else 2, before))
    return here


def _with(x: Typing, d: int, axis: Space) -> Typing:
    return Typing((*x.axes[:d], axis, *x.axes[d + 1 :]), x.null, x.weight)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unsafe_split_with_sizes")
def _split(c: Context, call: Any, result: Any) -> list[Typing]:
    x = c.of(call.args[0])
    at = next((given for given in (*call.args[1:], *call.kwargs.values()) if hasattr(given, "dim")), None)
    d = argument(call, 2, "dim", 0) % len(x.axes)
    if at is not None:
        for axis in (x.axes[d], *c.of(at).axes):
            c.freeze(axis, "split at values of a tensor")
        return [_with(x, d, c.data(r.shape[d])) for r in result]
    parts = segments(c, x.axes[d], [r.shape[d] for r in result])
    return [_with(x, d, p) for p in parts]


@rule("slice", "narrow", "slice_copy")
def _slice(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    d = argument(call, 1, "dim", 0) % len(x.axes)
    axis, n, size = x.axes[d], x.axes[d].size, result.shape[d]
    if call.name == "narrow":
        start, step = call.args[2], 1
    else:
        start, step = argument(call, 2, "start") or 0, argument(call, 4, "step", 1)
    start = min(max(start + n if start < 0 else start, 0), n)
    if size == n:
        return _with(x, d, axis)
    if size == 0:
        return _with(x, d, c.data(0))
    if step == 1:
        return _with(x, d, part(c, axis, start, size))
    if is_frozen(axis) and len(normal(axis).atoms) <= 1:
        return _with(x, d, c.data(size, _why_frozen(axis)))
    if n % step or start >= step:
        c.freeze(axis, f"sliced with step {step}, which does not divide {n}")
        return _with(x, d, c.data(size))
    major, minor = c.fresh(n // step), c.data(step, "strided slice")
    c.unify(axis, Product((major, minor)))
    return _with(x, d, major)


@rule("select", "select_copy")
def _select(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    d = call.args[1] % len(x.axes)
    n = x.axes[d].size
    at = call.args[2] % n
    if c.last_read is not None and c.last_read[0] == call.args[2]:
        c.pick(x.axes[d], Typing((), (), ranges=c.last_read[1]))
    else:
        part(c, x.axes[d], at, 1)
    return Typing((*x.axes[:d], *x.axes[d + 1 :]), (*x.null[:d], *x.null[d + 1 :]), x.weight)


@rule("unbind")
def _unbind(c: Context, call: Any, result: Any) -> list[Typing]:
    x = c.of(call.args[0])
    d = argument(call, 1, "dim", 0) % len(x.axes)
    c.freeze(x.axes[d], "unbound into single tensors")
    one = Typing((*x.axes[:d], *x.axes[d + 1 :]), (*x.null[:d], *x.null[d + 1 :]), x.weight)
    return [one for _ in result]


@rule("unfold", "as_strided")
def _opaque(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    if call.name == "unfold":
        d = call.args[1] % len(x.axes)
        c.freeze(x.axes[d], "cut into windows")
        axes = (*x.axes[:d], c.data(result.shape[d], "windows"), *x.axes[d + 1 :], c.data(result.shape[-1], "window"))
        return Typing(axes, (*x.null, True))
    if call.name == "as_strided_" and tuple(call.args[1]) == tuple(a.size for a in x.axes):
        return x  # how torch itself restrides axes of size 1
    for axis in x.axes:
        c.freeze(axis, "read by strides")
    return Typing(tuple(c.data(n) for n in result.shape), (False,) * result.dim())


@on_shapes("cat")
def _cat_on_shapes(tensors: Any, dim: int = 0) -> Any:
    joined = [t for t in tensors if t.shape != (0,)]  # torch joins such a tensor to those of any dims: an empty cache
    first = joined[0] if joined else tensors[0]
    if not joined or not -first.dim() <= dim < first.dim() or {(t.dtype, in_rows(t)) for t in tensors} != {(first.dtype, True)}:
        return NotImplemented
    dim %= first.dim()
    demand(len({(t.dim(), *t.shape[:dim], None, *t.shape[dim + 1 :]) for t in joined}) == 1, *tensors)
    return first.new_empty((*first.shape[:dim], sum(t.shape[dim] for t in joined), *first.shape[dim + 1 :]))


@on_shapes("contiguous")
def _contiguous_on_shapes(x: Tensor, **options: Any) -> Any:
    if options:
        return NotImplemented
    return x if x.is_contiguous() else x.new_empty(x.shape)


traits(
    "unsqueeze", "squeeze", "expand", "reshape", "view", "_unsafe_view", "clone", "contiguous", "repeat", "as_strided_",
    "lift_fresh",  # a constant made for each layer, of which one is left out
    rearranges=True,
)  # fmt: skip
traits(
    "view", "reshape", "_unsafe_view", "permute", "transpose", "clone", "contiguous", "_to_copy", passes_layers=True
)  # fmt: skip
traits(
    "clone", "_to_copy", "detach", "alias", "contiguous", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand",
    "permute", "transpose", "t", "slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unbind", "repeat",
    "lift_fresh", "_reshape_alias", "cat", "stack", moves_numbers=True,
)  # fmt: skip
traits("reshape", parameters=("input", "shape"))
traits("tensor_split", parameters=("input", "tensor_indices_or_sections", "dim"))
