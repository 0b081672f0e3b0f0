"""Ops that work element by element, with broadcasting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import Context, Typing, same
from bough.ops.meta import broadcast, like, ordered
from bough.ops.probe import at_zero
from bough.ops.rewriting import Site, Values
from bough.ops.spec import on_shapes, rewrites, rule, traits
from bough.spaces import UNIT, Space, indices

for _name in ("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "lift", "contiguous"):
    rule(_name)(same)
for _name in ("positive", "conj", "_conj", "resolve_conj", "resolve_neg", "_neg_view", "to", "_reshape_alias_copy"):
    rule(_name)(same)


def pointwise(c: Context, call: Any, result: Any) -> Any:
    """Axes of equal size are the same axis; an axis of size 1 is stretched."""
    tensors = _tensors(call)
    operands = [c.of(t) for t in tensors]
    results = result if isinstance(result, (tuple, list)) else (result,)
    typed = [_broadcast(c, call, tensors, operands, r.dim(), tuple(r.shape)) for r in results]
    return typed if isinstance(result, (tuple, list)) else typed[0]


def _tensors(call: Any) -> list[Any]:
    values = [*call.args, *(v for k, v in call.kwargs.items() if k != "out")]
    return [v for v in values if hasattr(v, "dim") and hasattr(v, "shape")]


def _broadcast(c: Context, call: Any, tensors: list[Any], operands: list[Typing], dims: int, shape: tuple[int, ...]) -> Typing:
    axes: list[Space] = []
    null: list[bool] = []
    for d in range(dims):
        if shape[d] == 1:
            axes.append(UNIT)
            null.append(True)
            continue
        places = [len(t.axes) - dims + d for t in operands]
        own = [i >= 0 and t.axes[i].size == shape[d] for t, i in zip(operands, places, strict=True)]
        present = [t.axes[i] for t, i, has in zip(operands, places, own, strict=True) if has]
        if not present:
            axes.append(c.fresh(shape[d]))
            null.append(False)
            continue
        for other in present[1:]:
            c.unify(present[0], other)
        axes.append(present[0])
        zeros = [has and t.null[i] for t, i, has in zip(operands, places, own, strict=True)]
        at = at_zero(call, tensors, zeros)
        null.append(at == "zero")
        if at == "undefined":
            c.notes.undefined.append(present[0])
    if call.name in ("add", "add_") and sum(not t.weight for t in operands) > 1:
        c.mark(GroupKind.HIDDEN, *axes)
    return Typing(tuple(axes), tuple(null), all(t.weight for t in operands))


@rule("set_data")
def _set_data(c: Context, call: Any, result: Any) -> Typing:
    """`tensor.data = value`: the tensor keeps its types, and has the value's elements."""
    tensor, value = c.of(call.args[0]), c.of(call.args[1])
    if [a.size for a in tensor.axes] == [a.size for a in value.axes]:
        for a, b in zip(tensor.axes, value.axes, strict=True):
            c.unify(a, b)
    else:
        for axis in (*tensor.axes, *value.axes):
            c.freeze(axis, "forward gives a tensor of the model data of another shape")
    return Typing(value.axes, value.null, tensor.weight)


@rule("native_dropout")
def _dropout(c: Context, call: Any, result: Any) -> list[Typing]:
    x = c.of(call.args[0])
    return [Typing(x.axes, x.null), Typing(x.axes, (False,) * len(x.axes))]


@rule("copy", "hardswish", "hardsigmoid", "hardshrink", "prelu", "_prelu_kernel", "rrelu", "celu", "floor_divide", "rsub",
      "masked_fill", "where", "bitwise_not", "fill", "zero", "_masked_scale", "_add_relu", "rrelu_with_noise")  # fmt: skip
def _untagged(c: Context, call: Any, result: Any) -> Any:
    return pointwise(c, call, result)


@rule("log_sigmoid_forward")
def _log_sigmoid(c: Context, call: Any, result: Any) -> list[Typing]:
    """The value, and a buffer for the backward pass, which is empty on some devices."""
    x = c.of(call.args[0])
    null = (False,) * len(x.axes)
    buffer = result[1]
    spare = (
        Typing(x.axes, null)
        if tuple(buffer.shape) == tuple(result[0].shape)
        else Typing(c.empty(buffer), (False,) * buffer.dim())
    )
    return [Typing(x.axes, null), spare]


@rule("bernoulli", "uniform", "normal", "random", "exponential", "cauchy", "geometric", "log_normal", "poisson", "binomial",
      "normal_functional", "_standard_gamma")  # fmt: skip
def _random(c: Context, call: Any, result: Any) -> Any:
    typed = pointwise(c, call, result)
    return Typing(typed.axes, (False,) * len(typed.axes))


@rule("glu")
def _glu(c: Context, call: Any, result: Any) -> Typing:
    from bough.spaces import Sum

    x = c.of(call.args[0])
    d = (call.args[1] if len(call.args) > 1 else -1) % len(x.axes)
    half = c.fresh(result.shape[d])
    c.unify(x.axes[d], Sum((half, half)))
    return Typing((*x.axes[:d], half, *x.axes[d + 1 :]), x.null)


@on_shapes(
    "relu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "neg",
    "exp",
    "rsqrt",
    "sqrt",
    "dropout",
    "sin",
    "cos",
    "pow",
)
def _unary_on_shapes(x: Any, *scalars: Any, **options: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or any(isinstance(s, (Tensor, complex)) for s in scalars):
        return NotImplemented
    return like(x)


@on_shapes("add", "sub", "mul", "div")
def _binary_on_shapes(a: Any, b: Any, **options: Any) -> Any:
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return NotImplemented
    if isinstance(b, (int, float)):
        return like(a)
    if not isinstance(b, Tensor) or a.dtype != b.dtype:
        return NotImplemented
    if a.is_contiguous() and b.is_contiguous():
        return a.new_empty(broadcast(a, b))
    if a.stride() == b.stride() and a.shape == b.shape:
        return like(a)
    return like(a) if ordered(a) and broadcast(a, b) == tuple(a.shape) else NotImplemented


@on_shapes("add_", "sub_", "mul_", "div_")
def _in_place_on_shapes(a: Any, b: Any, **options: Any) -> Any:
    fits = isinstance(b, (int, float)) or (isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape)
    return a if a.is_floating_point() and fits else NotImplemented


traits("gelu", "silu", "relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "add", "mul", timed=True)
traits("eq", "ne", "lt", "le", "gt", "ge", orders=True)
traits("native_dropout", "dropout", passes_layers=True)


@rewrites("eq", "ne", "lt", "le", "gt", "ge")
def _compared(site: Site) -> Values:
    """A unit's number, among all of them, is compared with numbers among the kept: its place there, or none."""
    numbered, at = site.types.ranges.get(site.given["self"]), site.given["other"]
    if numbered is None or type(at) is not int or at < 0:
        return {}
    place = site.position(numbered, at)
    name = site.node.target._schema.name  # type: ignore[union-attr]
    if name in ("aten::lt", "aten::ge"):
        return {"other": place}
    there = at in indices(numbered, site.kept)
    return {"other": place if there else -1 if name in ("aten::eq", "aten::ne") else place - 1}


traits("clamp", moves_numbers=True)
