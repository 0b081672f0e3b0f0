"""Ops that take an axis away, or look along it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import Context, Typing, argument
from bough.ops.spec import on_shapes, rule, traits
from bough.spaces import UNIT


def _dims(value: Any, n: int) -> set[int]:
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return set(range(n))
    return {d % n for d in (value if isinstance(value, (tuple, list)) else (value,))} if n else set()


def _reduced(c: Context, call: Any, result: Any, dims: set[int], exact_if_null: bool) -> Typing:
    x = c.of(call.args[0])
    for d in dims:
        c.notes.combined.append(x.axes[d])
        c.consume(x.axes[d])
        if not (exact_if_null and x.null[d]):
            c.renormalizes(x.axes[d])
    if result.dim() == len(x.axes):
        axes = tuple(UNIT if d in dims else a for d, a in enumerate(x.axes))
        return Typing(axes, tuple(d in dims or n for d, n in enumerate(x.null)))
    keep = [d for d in range(len(x.axes)) if d not in dims]
    return Typing(tuple(x.axes[d] for d in keep), tuple(x.null[d] for d in keep), x.weight)


def _typed(c: Context, call: Any, result: Any, dims: set[int], exact_if_null: bool) -> Any:
    if isinstance(result, (tuple, list)):
        return [_reduced(c, call, r, dims, exact_if_null) for r in result]
    return _reduced(c, call, result, dims, exact_if_null)


@rule("sum", "nansum", "count_nonzero")
def _sum(c: Context, call: Any, result: Any) -> Any:
    n = len(c.of(call.args[0]).axes)
    return _typed(c, call, result, _dims(argument(call, 1, "dim"), n), True)


@rule("linalg_vector_norm", "norm")
def _norm(c: Context, call: Any, result: Any) -> Any:
    n = len(c.of(call.args[0]).axes)
    order = argument(call, 1, "ord" if call.name == "linalg_vector_norm" else "p", 2)
    adds_zeros = not isinstance(order, (int, float)) or order >= 0  # below, it is the least that counts
    return _typed(c, call, result, _dims(argument(call, 2, "dim"), n), adds_zeros)


@rule("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "aminmax", "logsumexp", "nanmean", "all", "any")
def _statistic(c: Context, call: Any, result: Any) -> Any:
    n = len(c.of(call.args[0]).axes)
    dim = argument(call, 1, "dim")
    dims = _dims(None if isinstance(dim, bool) else dim, n)
    if call.name.startswith(("var", "std")):
        _keep_defined(c, call, dims)
    typed = _typed(c, call, result, dims, False)
    return Typing(typed.axes, (False,) * len(typed.axes)) if call.name == "logsumexp" else typed


def _keep_defined(c: Context, call: Any, dims: set[int]) -> None:
    """Keep more units than the correction of a variance, which divides by (units - correction), where one axis is reduced."""
    unbiased = argument(call, 1, "unbiased", True)
    unbiased = unbiased if isinstance(unbiased, bool) else argument(call, 2, "unbiased", True)
    correction = call.kwargs.get("correction")
    lost = int(unbiased) if correction is None else int(correction)
    wide = [axis for d, axis in enumerate(c.of(call.args[0]).axes) if d in dims and axis.size > 1]
    if len(wide) == 1 and lost > 0:
        c.at_least(wide[0], lost + 1)


@rule("max", "min", "prod", "median", "nanmedian", "mode")
def _one(c: Context, call: Any, result: Any) -> Any:
    n = len(c.of(call.args[0]).axes)
    if len(call.args) > 1 and hasattr(call.args[1], "dim"):
        from bough.ops.pointwise import pointwise

        return pointwise(c, call, result)
    dims = _dims(argument(call, 1, "dim"), n)
    typed = _typed(c, call, result, dims, False)
    if isinstance(typed, list) and len(dims) == 1:  # the value, and the number of the unit that has it
        numbered = c.of(call.args[0]).axes[next(iter(dims))]
        typed[1] = Typing(typed[1].axes, (False,) * len(typed[1].axes), ranges=numbered)
    return typed


@rule("argmax", "argmin")
def _arg(c: Context, call: Any, result: Any) -> Typing:
    """The number of a unit, among all of them."""
    x = c.of(call.args[0])
    dims = _dims(argument(call, 1, "dim"), len(x.axes))
    typed = _reduced(c, call, result, dims, False)
    if len(dims) == 1:
        return Typing(typed.axes, (False,) * len(typed.axes), ranges=x.axes[next(iter(dims))])
    for d in dims:
        c.freeze(x.axes[d], "its indices are used as data")
    return typed


@rule("topk")
def _topk(c: Context, call: Any, result: Any) -> list[Typing]:
    """Units chosen among all of them, as a router chooses experts: their values, and their numbers."""
    x = c.of(call.args[0])
    d = argument(call, 2, "dim", -1) % len(x.axes)
    c.renormalizes(x.axes[d])
    c.consume(x.axes[d])
    c.mark(GroupKind.EXPERT, x.axes[d])
    c.at_least(x.axes[d], result[0].shape[d])
    axes = (*x.axes[:d], c.data(result[0].shape[d], "chosen"), *x.axes[d + 1 :])
    null = (*x.null[:d], False, *x.null[d + 1 :])
    return [Typing(axes, null), Typing(axes, (False,) * len(axes), ranges=x.axes[d])]


@rule("cumsum", "cumprod", "logcumsumexp")
def _running(c: Context, call: Any, result: Any) -> Typing:
    """A statistic over the units up to each; masked units add nothing where they are zero."""
    x = c.of(call.args[0])
    d = argument(call, 1, "dim") % len(x.axes) if x.axes else 0
    for axis in x.axes[d : d + 1]:
        c.notes.combined.append(axis)
        if call.name != "cumsum" or not x.null[d]:
            c.renormalizes(axis)
    zeros = call.name != "logcumsumexp"
    return Typing(x.axes, tuple(n and i != d and zeros for i, n in enumerate(x.null)))


@rule("cummax", "cummin", "flip", "roll", "rot90", "tril", "triu", "sort", "argsort", "kthvalue")
def _ordered(c: Context, call: Any, result: Any) -> Any:
    """The order of the indices matters: the axes looked along are frozen."""
    x = c.of(call.args[0])
    name = call.name.rstrip("_")
    n = len(x.axes)
    if name in ("tril", "triu"):
        dims = {n - 2, n - 1}
    elif name == "roll":
        dims = _dims(argument(call, 2, "dims"), n)
    elif name in ("sort", "argsort"):
        dims = {0 if n == 0 else _last_int(call, -1) % n} if n else set()
    elif name in ("kthvalue", "rot90"):
        dims = _dims(argument(call, 2, "dim", -1) if name == "kthvalue" else argument(call, 2, "dims", (0, 1)), n)
    else:
        dims = _dims(argument(call, 1, "dims" if name == "flip" else "dim"), n)
    for d in dims:
        c.freeze(x.axes[d], "the order of its units matters")

    kept = [(a, null) for d, (a, null) in enumerate(zip(x.axes, x.null, strict=True)) if d not in dims]

    def typed(r: Any, values: bool) -> Typing:
        if r.dim() < n:  # the axis looked along is gone
            return Typing(tuple(a for a, _ in kept), tuple(null and values for _, null in kept))
        sizes = [a.size for d, a in enumerate(x.axes) if d not in dims]
        if [r.shape[d] for d in range(n) if d not in dims] != sizes:
            return Typing(c.empty(r), (False,) * n)
        axes = tuple(
            (a if a.size == r.shape[d] and name != "rot90" else c.data(r.shape[d])) if d in dims else a
            for d, a in enumerate(x.axes)
        )
        return Typing(axes, tuple(d not in dims and null and values for d, null in enumerate(x.null)))

    if isinstance(result, (tuple, list)):
        return [typed(r, i == 0) for i, r in enumerate(result)]
    return typed(result, name != "argsort")


def _last_int(call: Any, default: int) -> int:
    ints = [a for a in call.args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    return ints[-1] if ints else call.kwargs.get("dim", default)


@on_shapes("mean", "sum", "amax", "amin")
def _reduction_on_shapes(x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    if options or not x.is_floating_point() or not isinstance(dim, (int, list, tuple)) or dim == [] or dim == ():
        return NotImplemented
    gone = [d % x.dim() if -x.dim() <= d < x.dim() else -1 for d in ([dim] if isinstance(dim, int) else dim)]
    if -1 in gone or len(set(gone)) < len(gone) or not x.numel() or not x.is_contiguous():
        return NotImplemented
    return x.new_empty([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone])


traits("flip", "roll", "sort", "aminmax", "amax", "amin", "max", "min", moves_numbers=True)
traits("argsort", picks=True)
traits("sum", "count_nonzero", "cumsum", "prod", counts=True)
