"""Ops that work element by element, with broadcasting."""

from __future__ import annotations

from typing import Any

from bough.rules.context import Context, Typing, rule, same
from bough.spaces import UNIT, Space

# f(0) = 0
_ZERO_TO_ZERO = frozenset(
    (
        *("relu", "gelu", "silu", "tanh", "neg", "abs", "sqrt", "hardswish", "hardtanh", "leaky_relu", "elu", "celu", "selu"),
        *("mish", "sin", "sinh", "asinh", "atan", "sign", "erf", "expm1", "log1p", "floor", "ceil", "round", "trunc", "square"),
        *("relu6", "softshrink", "hardshrink", "nan_to_num", "rrelu", "prelu", "_prelu_kernel"),
    )
)
_ANY_NULL = frozenset(("mul",))
_FIRST_NULL = frozenset(("div", "true_divide", "copy", "fmod", "remainder"))
_ALL_NULL = frozenset(("add", "sub", "rsub", "maximum", "minimum", "lerp"))

for _name in ("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "lift", "contiguous"):
    rule(_name)(same)
for _name in ("bernoulli", "positive", "conj", "_conj", "resolve_conj", "view_as_real_copy", "to", "_reshape_alias_copy"):
    rule(_name)(same)


def pointwise(c: Context, call: Any, result: Any) -> Any:
    """Axes of equal size are the same axis; an axis of size 1 is stretched."""
    operands = [c.of(t) for t in _tensors(call)]
    results = result if isinstance(result, (tuple, list)) else (result,)
    typed = [_broadcast(c, call, operands, r.dim(), tuple(r.shape)) for r in results]
    return typed if isinstance(result, (tuple, list)) else typed[0]


def _tensors(call: Any) -> list[Any]:
    values = [*call.args, *call.kwargs.values()]
    return [v for v in values if hasattr(v, "dim") and hasattr(v, "shape")]


def _broadcast(c: Context, call: Any, operands: list[Typing], dims: int, shape: tuple[int, ...]) -> Typing:
    name = call.name.rstrip("_") if not call.name.startswith("_") else call.name
    axes: list[Space] = []
    null: list[bool] = []
    for d in range(dims):
        if shape[d] == 1:
            axes.append(UNIT)
            null.append(True)
            continue
        present = [
            (t.axes[i], t.null[i])
            for t in operands
            for i in (len(t.axes) - dims + d,)
            if i >= 0 and t.axes[i].size == shape[d] != 1
        ]
        if not present:
            axes.append(c.fresh(shape[d]))
            null.append(False)
            continue
        first = present[0][0]
        for other, _ in present[1:]:
            c.unify(first, other)
        axes.append(first)
        null.append(_null(name, call, operands, [n for _, n in present], d - dims, shape[d]))
    if name == "add" and sum(not t.weight for t in operands) > 1:
        c.mark("residual", *axes)
    return Typing(tuple(axes), tuple(null), all(t.weight for t in operands))


def _null(name: str, call: Any, operands: list[Typing], present: list[bool], axis: int, size: int) -> bool:
    if name in _ZERO_TO_ZERO:
        return all(present)
    if name in _ANY_NULL:
        return any(present)
    first = operands[0]
    if name in _FIRST_NULL or name == "pow":
        if name == "copy" and len(operands) > 1:
            first = operands[1]
        if name == "pow" and not (isinstance(call.args[1], (int, float)) and call.args[1] > 0):
            return False
        return len(first.axes) >= -axis and first.axes[axis].size == size and first.null[axis]
    if name in _ALL_NULL:
        return len(present) == len(operands) > 1 and all(present)
    return False


@rule("native_dropout")
def _dropout(c: Context, call: Any, result: Any) -> list[Typing]:
    x = c.of(call.args[0])
    return [Typing(x.axes, x.null), Typing(x.axes, (False,) * len(x.axes))]


@rule("copy", "hardswish", "hardsigmoid", "hardshrink", "log_sigmoid", "prelu", "_prelu_kernel", "rrelu", "celu")
def _untagged(c: Context, call: Any, result: Any) -> Any:
    return pointwise(c, call, result)


@rule("masked_fill", "where", "fill", "zero", "uniform", "normal", "random", "exponential", "bitwise_not")
def _overwrite(c: Context, call: Any, result: Any) -> Any:
    typed = pointwise(c, call, result)
    return Typing(typed.axes, (call.name.startswith("zero"),) * len(typed.axes))


@rule("glu")
def _glu(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    d = (call.args[1] if len(call.args) > 1 else -1) % len(x.axes)
    half = c.fresh(result.shape[d])
    from bough.spaces import Sum

    c.unify(x.axes[d], Sum((half, half)))
    return Typing((*x.axes[:d], half, *x.axes[d + 1 :]), x.null)
