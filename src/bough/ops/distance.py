"""Distances and losses: sums over pairs of elements."""

from __future__ import annotations

from typing import Any

from bough.ops.context import Context, Typing, argument
from bough.ops.pointwise import pointwise
from bough.ops.spec import rule
from bough.spaces import UNIT, Space


def _summed(c: Context, axis: Space, exact: bool) -> None:
    """Note that an op sums over an axis; `exact`: units that are zero on both sides add nothing."""
    c.consume(axis)
    if not exact:
        c.renormalizes(axis)


@rule("_cdist_forward", "_euclidean_dist")
def _cdist(c: Context, call: Any, result: Any) -> Typing:
    """Distances between rows [..., P, M] and [..., R, M]: equal units are no distance apart, so zeros add nothing."""
    a, b = c.of(call.args[0]), c.of(call.args[1])
    c.unify(a.axes[-1], b.axes[-1])
    _summed(c, a.axes[-1], a.null[-1] and b.null[-1])
    batch: list[Space] = []
    for i in range(3, result.dim() + 1):
        present = [t.axes[-i] for t in (a, b) if len(t.axes) >= i and t.axes[-i].size > 1]
        for other in present[1:]:
            c.unify(present[0], other)
        batch.insert(0, present[0] if present else UNIT)
    c.macs(*batch, a.axes[-2], b.axes[-2], a.axes[-1])
    return Typing((*batch, a.axes[-2], b.axes[-2]), (False,) * result.dim())


@rule("_pdist_forward")
def _pdist(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    c.freeze(x.axes[0], "paired with each other")
    _summed(c, x.axes[1], x.null[1])
    return Typing(c.empty(result), (False,))


@rule("dist")
def _dist(c: Context, call: Any, result: Any) -> Typing:
    a, b = c.of(call.args[0]), c.of(call.args[1])
    for i in range(1, min(len(a.axes), len(b.axes)) + 1):
        if a.axes[-i].size == b.axes[-i].size:
            c.unify(a.axes[-i], b.axes[-i])
    for t, other in ((a, b), (b, a)):
        for i, axis in enumerate(t.axes[::-1], start=1):
            paired = len(other.axes) >= i and other.axes[-i].size == axis.size
            _summed(c, axis, t.null[-i] and paired and other.null[-i])
    return Typing((), ())


@rule(
    "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"
)
def _elementwise_loss(c: Context, call: Any, result: Any) -> Typing:
    """Element by element; then, unless asked otherwise, their mean or sum."""
    x = c.of(call.args[0])
    if result.dim() == len(x.axes) > 0:
        return pointwise(c, call, result)  # type: ignore[no-any-return]
    for t in call.args[1:]:
        if hasattr(t, "dim"):
            y = c.of(t)
            for i in range(1, len(y.axes) + 1):
                if i <= len(x.axes) and y.axes[-i].size == x.axes[-i].size:
                    c.unify(x.axes[-i], y.axes[-i])
    for axis in x.axes:
        _summed(c, axis, exact=False)
    return Typing((), ())


@rule("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss", "multilabel_margin_loss_forward", "_ctc_loss")
def _loss_of_classes(c: Context, call: Any, result: Any) -> Any:
    """Targets number the classes, so all of them stay."""
    for t in call.args:
        for axis in c.of(t).axes if hasattr(t, "dim") else ():
            c.freeze(axis, "compared with targets")
    if isinstance(result, (tuple, list)):
        return [Typing(c.empty(r), (False,) * r.dim()) for r in result]
    return Typing(c.empty(result), (False,) * result.dim())


@rule("renorm")
def _renorm(c: Context, call: Any, result: Any) -> Typing:
    """Slices along an axis, scaled down to a largest norm; the norm runs over all other axes."""
    x = c.of(call.args[0])
    d = argument(call, 2, "dim") % len(x.axes)
    for i, axis in enumerate(x.axes):
        if i != d and not x.null[i]:
            c.renormalizes(axis)
    return Typing(x.axes, x.null, x.weight)
