"""Ops that pick by indices, and ops that make tensors from nothing."""

from __future__ import annotations

from typing import Any

from bough.rules.context import Context, Typing, rule
from bough.spaces import UNIT, Space


def _indexed(c: Context, x: Typing, index: list[Any]) -> tuple[list[int], list[Space], int]:
    """(dims indexed, the axes of the picked values, where they go)."""
    dims: list[int] = []
    broadcast: list[Space] = []
    d = 0
    for i in index:
        if i is None:
            d += 1
            continue
        t = c.of(i)
        boolean = i.dtype in _BOOLS()
        width = len(t.axes) if boolean else 1
        dims += range(d, d + width)
        d += width
        axes = [] if boolean else list(t.axes)
        broadcast = [UNIT] * (len(axes) - len(broadcast)) + broadcast
        for k in range(1, len(axes) + 1):
            if broadcast[-k].size == 1:
                broadcast[-k] = axes[-k]
            elif axes[-k].size == broadcast[-k].size:
                c.unify(broadcast[-k], axes[-k])
    return dims, list(broadcast), dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0


def _BOOLS() -> tuple[Any, ...]:
    import torch

    return (torch.bool, torch.uint8)


@rule("index", "_unsafe_index")
def _index(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    dims, picked, at = _indexed(c, x, call.args[1])
    for d in dims:
        c.freeze(x.axes[d], "indexed by a tensor")
    rest = [d for d in range(len(x.axes)) if d not in dims]
    before = [d for d in rest if d < at]
    after = [d for d in rest if d >= at]
    middle = result.dim() - len(rest)
    if len(picked) != middle:
        picked = [c.data(n) for n in result.shape[len(before) : len(before) + middle]]
    axes = (*(x.axes[d] for d in before), *picked, *(x.axes[d] for d in after))
    null = (*(x.null[d] for d in before), *(False,) * middle, *(x.null[d] for d in after))
    return Typing(axes, null, x.weight)


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(c: Context, call: Any, result: Any) -> Typing:
    x, values = c.of(call.args[0]), c.of(call.args[2])
    dims, picked, at = _indexed(c, x, call.args[1])
    for d in dims:
        c.freeze(x.axes[d], "indexed by a tensor")
    rest = [d for d in range(len(x.axes)) if d not in dims]
    target = [*(x.axes[d] for d in rest if d < at), *picked, *(x.axes[d] for d in rest if d >= at)]
    for k in range(1, min(len(target), len(values.axes)) + 1):
        if values.axes[-k].size == target[-k].size:
            c.unify(values.axes[-k], target[-k])
    return Typing(x.axes, (False,) * len(x.axes), x.weight)


@rule("index_select")
def _index_select(c: Context, call: Any, result: Any) -> Typing:
    x, index = c.of(call.args[0]), c.of(call.args[2])
    d = call.args[1] % len(x.axes)
    c.freeze(x.axes[d], "indexed by a tensor")
    axis = index.axes[0] if index.axes else UNIT
    return Typing((*x.axes[:d], axis, *x.axes[d + 1 :]), x.null, x.weight)


@rule("gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "take_along_dim")
def _gather(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    d = call.args[1] % len(x.axes) if x.axes else 0
    c.freeze(x.axes[d], "indexed by a tensor")
    others = [c.of(t) for t in (*call.args[2:], *call.kwargs.values()) if hasattr(t, "shape")]
    out = list(x.axes)
    for other in others:
        if len(other.axes) != len(x.axes):
            continue
        for i, axis in enumerate(other.axes):
            if i == d:
                c.freeze(axis, "indexed by a tensor")
            elif axis.size == x.axes[i].size:
                c.unify(axis, x.axes[i])
            else:
                c.freeze(axis, "indexed by a tensor")
                c.freeze(x.axes[i], "indexed by a tensor")
    for i, n in enumerate(result.shape):
        if out[i].size != n or (i == d and call.name == "gather"):
            out[i] = c.data(n)
    return Typing(tuple(out), (False,) * len(out))


@rule("zeros", "ones", "full", "empty", "rand", "randn", "empty_strided", "new_zeros", "new_ones", "new_full", "new_empty",
      "scalar_tensor", "new_empty_strided", "randint", "empty_permuted")  # fmt: skip
def _constant(c: Context, call: Any, result: Any) -> Typing:
    """The same value everywhere (or noise): its axes may become anything of their size."""
    return Typing(tuple(c.fresh(n) for n in result.shape), ("zeros" in call.name,) * result.dim())


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
def _like(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    return Typing(x.axes, (call.name == "zeros_like",) * len(x.axes))


@rule("arange", "linspace", "eye", "logspace", "tril_indices", "triu_indices", "randperm", "one_hot", "hann_window")
def _ordinal(c: Context, call: Any, result: Any) -> Typing:
    """Values that tell an index: which units are kept would matter."""
    for t in call.args:
        if hasattr(t, "shape"):
            for axis in c.of(t).axes:
                c.freeze(axis, "used as indices")
    return Typing(tuple(c.data(n, f"numbered by {call.name}") for n in result.shape), (False,) * result.dim())


@rule("nonzero", "masked_select", "unique", "_unique2", "bincount", "multinomial", "histc", "searchsorted", "bucketize")
def _data_dependent(c: Context, call: Any, result: Any) -> Any:
    x = c.of(call.args[0])
    for axis in x.axes:
        c.freeze(axis, "chosen by data")

    def typed(r: Any) -> Typing:
        return Typing(tuple(c.data(n) for n in r.shape), (False,) * r.dim())

    return [typed(r) for r in result] if isinstance(result, (tuple, list)) else typed(result)
