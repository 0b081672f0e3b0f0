"""Normalizations, and softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bough.ops.context import Context, Typing, argument
from bough.ops.meta import demand, like
from bough.ops.rewriting import Site, Values, noted
from bough.ops.spec import on_shapes, rewrites, rule, traits
from bough.spaces import Product, is_frozen


def _affine(c: Context, values: list[Any], axes: tuple[Any, ...]) -> bool:
    """Types weights and biases over `axes`; says whether there is a weight, and masked units come out zero."""
    null = values[0] is not None
    for value in values:
        if value is not None:
            v = c.of(value)
            for a, b in zip(v.axes, axes, strict=True):
                c.unify(a, b)
            null = null and all(v.null)
    return null


@rule("batch_norm", "native_batch_norm", "instance_norm")
def _batch_norm(c: Context, call: Any, result: Any) -> Any:
    x = c.of(call.args[0])
    if argument(call, 5, "training") is True:  # statistics of this input
        c.renormalizes(*(a for d, a in enumerate(x.axes) if d != 1))
    null = _affine(c, list(call.args[1:3]), (x.axes[1],))
    _affine(c, [None, *call.args[3:5]], (x.axes[1],))
    typing = Typing(x.axes, tuple(null if d == 1 else is_frozen(a) for d, a in enumerate(x.axes)))
    if isinstance(result, (tuple, list)):
        return [typing, *(Typing((x.axes[1],) * r.dim(), (False,) * r.dim()) for r in result[1:])]
    return typing


@rule("layer_norm", "native_layer_norm")
def _layer_norm(c: Context, call: Any, result: Any) -> Any:
    x = c.of(call.args[0])
    if len(argument(call, 1, "normalized_shape")) == 1:
        c.at_least(x.axes[-1], 2)  # of one unit nothing is left once its mean is subtracted
    return _over_last(c, call, result, x, [argument(call, 2, "weight"), argument(call, 3, "bias")])


@rule("rms_norm", "_fused_rms_norm")
def _rms_norm(c: Context, call: Any, result: Any) -> Any:
    x = c.of(call.args[0])
    return _over_last(c, call, result, x, [argument(call, 2, "weight")])


def _over_last(c: Context, call: Any, result: Any, x: Typing, affine: list[Any]) -> Any:
    n = len(argument(call, 1, "normalized_shape"))
    axes = x.axes[-n:]
    c.renormalizes(*axes)
    null = _affine(c, affine, axes)
    others = tuple(x.null[:-n]) if len(affine) == 1 or affine[1] is None else (False,) * (len(x.axes) - n)
    for i, axis in enumerate(axes):
        c.notes.integers[f"normalized_shape.{i}"] = axis
    if affine[0] is None:  # zero-mean input stays unknown; a root mean square keeps zeros
        null = "rms" in call.name and all(x.null[-n:])
    typing = Typing(x.axes, (*others, *(null,) * n))
    if isinstance(result, (tuple, list)):
        rest = [
            Typing(tuple(a if r.shape[d] > 1 else c.fresh(1) for d, a in enumerate(x.axes[: r.dim()])), (False,) * r.dim())
            for r in result[1:]
        ]
        return [typing, *rest]
    return typing


@rule("group_norm")
def _group_norm(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    groups = call.args[1]
    g, each = c.fresh(groups), c.fresh(x.axes[1].size // groups)
    c.notes.integers["num_groups"] = g
    c.notes.counts.append((1, g))
    c.unify(x.axes[1], Product((g, each)))
    c.renormalizes(each, *x.axes[2:])
    null = _affine(c, [argument(call, 2, "weight"), argument(call, 3, "bias")], (x.axes[1],))
    return Typing(x.axes, tuple(null if d == 1 else is_frozen(a) for d, a in enumerate(x.axes)))


@rule("native_group_norm")
def _native_group_norm(c: Context, call: Any, result: Any) -> list[Typing]:
    x = c.of(call.args[0])
    g, each = c.fresh(call.args[6]), c.fresh(x.axes[1].size // call.args[6])
    c.notes.integers["num_groups"] = g
    c.unify(x.axes[1], Product((g, each)))
    c.renormalizes(each, *x.axes[2:])
    null = _affine(c, list(call.args[1:3]), (x.axes[1],))
    typing = Typing(x.axes, tuple(null if d == 1 else is_frozen(a) for d, a in enumerate(x.axes)))
    return [typing, *(Typing((x.axes[0], g), (False, False)) for _ in result[1:])]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def _softmax(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    if x.axes:
        c.renormalizes(x.axes[call.args[1] % len(x.axes)])
    return Typing(x.axes, (False,) * len(x.axes))


@rule("_weight_norm_interface")
def _weight_norm(c: Context, call: Any, result: Any) -> list[Typing]:
    v, g = c.of(call.args[0]), c.of(call.args[1])
    d = argument(call, 2, "dim", 0) % len(v.axes)
    c.unify(v.axes[d], g.axes[d])
    c.notes.combined.extend(a for i, a in enumerate(v.axes) if i != d)
    c.renormalizes(*(a for i, a in enumerate(v.axes) if i != d and not all(v.null)))
    c.notes.undefined.append(v.axes[d])
    return [Typing(v.axes, v.null, True), Typing(g.axes, g.null, True)]


@on_shapes("layer_norm", "rms_norm")
def _layer_norm_on_shapes(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Any = None, *rest: Any, **more: Any
) -> Any:
    last = x.shape[x.dim() - len(shape) :]
    affine = [t for t in (weight, bias) if isinstance(t, Tensor)]
    demand(tuple(shape) == tuple(last) and all(t.shape == last for t in affine), x, *affine)
    return x.new_empty(x.shape)


@on_shapes("batch_norm")
def _batch_norm_on_shapes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, *rest: Any
) -> Any:
    per_channel = [t for t in (weight, bias, mean, variance) if t is not None]
    demand(all(t.shape == (x.shape[1],) for t in per_channel), x, *per_channel)
    return like(x)


@on_shapes("_softmax", "_log_softmax")
def _softmax_on_shapes(x: Tensor, dim: int, half_to_float: bool) -> Any:
    known = x.is_contiguous() and -x.dim() <= dim < x.dim() and not half_to_float
    return x.new_empty(x.shape) if known else NotImplemented


@rewrites("layer_norm", "rms_norm")
def _normalized_shape(site: Site) -> Values:
    given = site.given["normalized_shape"]
    return {"normalized_shape": site.sizes(given, site.axes("input")[-len(given) :])}


traits("group_norm", rewrite=noted("num_groups"), parameters=("input", "num_groups", "weight", "bias", "eps"))
traits("layer_norm", parameters=("input", "normalized_shape", "weight", "bias", "eps"))
traits("rms_norm", parameters=("input", "normalized_shape", "weight", "eps"))
traits("batch_norm", "layer_norm", "softmax", "_softmax", timed=True)
