"""Operators that select by indices, and operators that create tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bough.ops import numbers
from bough.ops.context import Context, Typing, argument
from bough.ops.spec import rule, traits
from bough.spaces import UNIT, Space

_MASKS = (torch.bool, torch.uint8)  # dtypes of indices that are masks


def _indexed(c: Context, x: Typing, index: list[Any]) -> tuple[list[int], list[Space], int]:
    """Return (dims of `x` that are indexed, axes of the selected values, their position in the result), as in NumPy's
    advanced indexing: the selected axes stand where the indices stood if these are neighbours, and first otherwise."""
    dims: list[int] = []
    broadcast: list[Space] = []
    d = 0
    for i in index:
        if i is None:
            d += 1
            continue
        t = c.of(i)
        boolean = i.dtype in _MASKS
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


def _pick(c: Context, x: Typing, dims: list[int], index: list[Any], reads: bool) -> None:
    given = [c.of(i) for i in index if i is not None]
    for n, d in enumerate(dims):
        if len(given) == len(dims):
            c.pick(x.axes[d], given[n], table=x if reads else None)
        else:  # masks
            c.freeze(x.axes[d], "indexed by a tensor")


@rule("index", "_unsafe_index")
def _index(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    dims, picked, at = _indexed(c, x, call.args[1])
    _pick(c, x, dims, call.args[1], reads=True)
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
    if len(call.args[1]) == 1 and call.args[1][0].dtype in _MASKS and call.args[2].numel() == 1:
        return _fill(c, x, c.of(call.args[1][0]))
    dims, picked, at = _indexed(c, x, call.args[1])
    _pick(c, x, dims, call.args[1], reads=False)
    rest = [d for d in range(len(x.axes)) if d not in dims]
    target = [*(x.axes[d] for d in rest if d < at), *picked, *(x.axes[d] for d in rest if d >= at)]
    for k in range(1, min(len(target), len(values.axes)) + 1):
        if values.axes[-k].size == target[-k].size:
            c.unify(values.axes[-k], target[-k])
    null = [False] * len(x.axes)
    for k, d in enumerate(reversed(rest), start=1):
        if k <= len(values.axes) and target[-k] is x.axes[d]:
            null[d] = x.null[d] and values.null[-k]
    return Typing(x.axes, tuple(null), x.weight)


def _fill(c: Context, x: Typing, mask: Typing) -> Typing:
    """One number, where a mask over the first axes says."""
    for a, b in zip(x.axes, mask.axes, strict=False):
        c.unify(a, b)
    return Typing(x.axes, (False,) * len(x.axes), x.weight)


@rule("index_select")
def _index_select(c: Context, call: Any, result: Any) -> Typing:
    x, index = c.of(call.args[0]), c.of(call.args[2])
    d = call.args[1] % len(x.axes)
    c.pick(x.axes[d], index, table=x)
    axis = index.axes[0] if index.axes else UNIT
    return Typing((*x.axes[:d], axis, *x.axes[d + 1 :]), x.null, x.weight)


@rule("take_along_dim")
def _take_along(c: Context, call: Any, result: Any) -> Any:
    """One index per element, or per row that it is stretched along."""
    x, index, dim = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "dim")
    if dim is None:
        return []
    d = dim % len(x.axes)
    c.pick(x.axes[d], index, table=x)
    axes, null = list(x.axes), list(x.null)
    for i, (axis, other) in enumerate(zip(x.axes, index.axes, strict=True)):
        if i == d:
            axes[i], null[i] = other, False
        elif axis.size == other.size:
            c.unify(axis, other)
        elif axis.size == 1:
            axes[i] = other
    return Typing(tuple(axes), tuple(null))


@rule("gather", "scatter", "scatter_add", "scatter_reduce")
def _gather(c: Context, call: Any, result: Any) -> Typing:
    """One index per element: the axis picked from or into, and as many others as there are."""
    x, index = c.of(call.args[0]), c.of(call.args[2])
    d = call.args[1] % len(x.axes) if x.axes else 0
    c.pick(x.axes[d], index, table=x if call.name == "gather" else None)
    sources = [c.of(t) for t in call.args[3:] if hasattr(t, "shape")]
    for other in (index, *sources):
        for i, axis in enumerate(other.axes):
            if i == d:
                c.freeze(axis, "picked one by one")
            elif axis.size == x.axes[i].size:
                c.unify(axis, x.axes[i])
            else:
                c.freeze(axis, "picked in part")
                c.freeze(x.axes[i], "picked in part")
    if call.name == "gather":
        null = tuple(False if i == d else n for i, n in enumerate(x.null))
        return Typing(index.axes if len(index.axes) == result.dim() else x.axes, null)
    null = tuple(n and all(s.null[i] for s in sources if i < len(s.null)) for i, n in enumerate(x.null))
    return Typing(x.axes, null if sources else (False,) * len(x.axes))


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def _index_add(c: Context, call: Any, result: Any) -> Typing:
    """Whole slices, at the indices of one axis."""
    x, index = c.of(call.args[0]), c.of(call.args[2])
    d = call.args[1] % len(x.axes) if x.axes else 0
    c.pick(x.axes[d], index)
    null = [False] * len(x.axes)
    if len(call.args) > 3 and hasattr(call.args[3], "shape"):
        source = c.of(call.args[3])
        for i, axis in enumerate(source.axes):
            if i == d:
                c.freeze(axis, "picked one by one")
            else:
                c.unify(axis, x.axes[i])
                null[i] = x.null[i] and source.null[i]
    return Typing(x.axes, tuple(null))


@rule("_local_scalar_dense")
def _read(c: Context, call: Any, result: Any) -> list[Typing]:
    c.read = numbers.read(c, call, result)
    return []


@rule("rand", "randn", "randint")
def _drawn(c: Context, call: Any, result: Any) -> Typing:
    """With fewer units, those that stay would be given other numbers."""
    return Typing(tuple(c.data(n, c.reason("random numbers are drawn for it")) for n in result.shape), (False,) * result.dim())


@rule("zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor",
      "new_empty_strided", "empty_permuted")  # fmt: skip
def _constant(c: Context, call: Any, result: Any) -> Typing:
    """The same value everywhere: its axes may become anything of their size. What was never written is zero:
    no one may read it."""
    return Typing(tuple(c.fresh(n) for n in result.shape), ("zeros" in call.name or "empty" in call.name,) * result.dim())


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
def _like(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    return Typing(x.axes, (call.name in ("zeros_like", "empty_like"),) * len(x.axes))


@rule("arange", "linspace", "eye", "logspace", "tril_indices", "triu_indices", "randperm", "hann_window",
      "bartlett_window", "blackman_window", "hamming_window", "kaiser_window", "range", "fft_fftfreq",
      "fft_rfftfreq")  # fmt: skip
def _ordinal(c: Context, call: Any, result: Any) -> Typing:
    """Values that tell an index: which units are kept would matter."""
    for t in call.args:
        if hasattr(t, "shape"):
            for axis in c.of(t).axes:
                c.freeze(axis, "used as indices")
    return Typing(tuple(c.data(n, f"numbered by {call.name}") for n in result.shape), (False,) * result.dim())


@rule("one_hot")
def _one_hot(c: Context, call: Any, result: Any) -> Typing:
    """A last axis of the units that the values number; no value is the number of a masked unit."""
    x = c.of(call.args[0])
    axis = c.data(result.shape[-1], "numbered by one_hot") if x.ranges is None else c.fresh(result.shape[-1])
    c.pick(axis, x, "used as indices")
    return Typing((*x.axes, axis), (*(False,) * len(x.axes), x.ranges is not None))


@rule("nonzero")
def _nonzero(c: Context, call: Any, result: Any) -> Typing:
    """Of one axis: the numbers of some of its units."""
    x = c.of(call.args[0])
    numbered = x.axes[0] if len(x.axes) == 1 else None
    for axis in x.axes if numbered is None else ():
        c.freeze(axis, "chosen by data")
    return Typing(tuple(c.data(n) for n in result.shape), (False,) * result.dim(), ranges=numbered)


@rule("isin")
def _isin(c: Context, call: Any, result: Any) -> Typing:
    """Each element against all of a second tensor."""
    for axis in c.of(call.args[1]).axes if hasattr(call.args[1], "dim") else ():
        c.freeze(axis, "compared with each element")
    x = c.of(call.args[0]) if hasattr(call.args[0], "dim") else Typing((), ())
    return Typing(x.axes, (False,) * len(x.axes))


@rule("bincount", "histc")
def _counted(c: Context, call: Any, result: Any) -> Typing:
    """How often each number occurs: an axis of the numbered units."""
    x = c.of(call.args[0])
    axis = c.fresh(result.shape[0])
    c.pick(axis, x, "counts of data")
    return Typing((axis,), (True,))


@rule("masked_select", "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "multinomial", "searchsorted",
      "bucketize", "repeat_interleave", "nonzero_static", "histogram", "_histogramdd_bin_edges",
      "_histogramdd_from_bin_cts")  # fmt: skip
def _data_dependent(c: Context, call: Any, result: Any) -> Any:
    """Results of which neither sizes nor values say what they have to do with the units of any argument."""
    for given in (*call.args, *call.kwargs.values()):
        for axis in c.of(given).axes if isinstance(given, Tensor) else ():
            c.freeze(axis, "chosen by data")

    def typed(r: Any) -> Typing:
        return Typing(tuple(c.data(n) for n in r.shape), (False,) * r.dim())

    return [typed(r) for r in result] if isinstance(result, (tuple, list)) else typed(result)


traits("index", "gather", "index_select", "take_along_dim", "masked_select", moves_numbers=True)
traits("index", "_unsafe_index", "index_put", "_index_put_impl", "_unsafe_index_put", "take_along_dim", picks=True, index_at=1)
traits("index_select", "gather", "scatter", "scatter_add", "scatter_reduce", picks=True, index_at=2)
traits("index_add", "index_copy", "index_fill", "index_reduce", picks=True, index_at=2)
traits("bincount", "histc", "one_hot", picks=True, numbers_units=True)
traits(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided", "_local_scalar_dense", ignores_values=True,
)  # fmt: skip
traits("tolist", "numpy", "_local_scalar_dense", reads_values=True, numbers_units=True)
traits("rand", "rand_like", "uniform", "bernoulli", draws=True)
traits("take_along_dim", parameters=("input", "indices", "dim"))
traits("one_hot", parameters=("input", "num_classes"))
