"""Embeddings."""

from __future__ import annotations

from typing import Any

from bough.graph import GroupKind
from bough.ops.context import Context, Typing, argument
from bough.ops.spec import rule, traits


@rule("embedding")
def _embedding(c: Context, call: Any, result: Any) -> Typing:
    w, index = c.of(call.args[0]), c.of(call.args[1])
    c.pick(w.axes[0], index, "indexed by data", w)
    c.mark(GroupKind.HIDDEN, w.axes[1])
    return Typing((*index.axes, w.axes[1]), (*(False,) * len(index.axes), w.null[1]))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _bag(c: Context, call: Any, result: Any) -> list[Typing]:
    """Sums, means or maxima of rows [V, D]: one [D] per bag, which `offsets` tell apart; and where each index went."""
    w, index = c.of(call.args[0]), c.of(call.args[1])
    c.pick(w.axes[0], index, "indexed by data", w)
    weights = argument(call, 6, "per_sample_weights")
    for t in (call.args[1], call.args[2], *(() if weights is None else (weights,))):
        for axis in c.of(t).axes:
            c.freeze(axis, "gathered into bags")
    c.mark(GroupKind.HIDDEN, w.axes[1])
    first = Typing((*c.empty(result[0])[:1], w.axes[1]), (False, w.null[1]))

    def rest(r: Any) -> Typing:
        columns = r.dim() == 2 and r.shape[1] == w.axes[1].size  # of a maximum: the index it comes from
        return Typing((*c.empty(r)[:1], w.axes[1]) if columns else c.empty(r), (False,) * r.dim())

    return [first, *map(rest, result[1:])]


@rule("embedding_renorm")
def _embedding_renorm(c: Context, call: Any, result: Any) -> Typing:
    """Rows [V, D] scaled down, in place, to a largest norm over D."""
    w, index = c.of(call.args[0]), c.of(call.args[1])
    c.pick(w.axes[0], index, "indexed by data")
    if not w.null[1]:
        c.renormalizes(w.axes[1])
    return Typing(w.axes, w.null, w.weight)


traits("embedding", "_embedding_bag", "_embedding_bag_forward_only", picks=True, index_at=1)
