"""Attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import Context, Typing, argument
from bough.ops.meta import demand
from bough.ops.rewriting import Site, Values
from bough.ops.spec import Place, RecordedOp, contracts, on_shapes, rewrites, rule, traits
from bough.spaces import UNIT, Product


@rule("scaled_dot_product_attention")
def _attention(c: Context, call: Any, result: Any) -> Typing:
    q, k, v = (c.of(t) for t in call.args[:3])
    mask = argument(call, 3, "attn_mask")
    scale, gqa = argument(call, 6, "scale"), argument(call, 7, "enable_gqa", False)
    heads = q.axes[-3] if len(q.axes) > 2 else UNIT
    for i in range(3, len(q.axes) + 1):
        for other in (k, v):
            if other.axes[-i].size == q.axes[-i].size:
                c.unify(q.axes[-i], other.axes[-i])
            elif gqa and i == 3 and other.axes[-3].size > 1:
                c.unify(q.axes[-3], Product((other.axes[-3], c.fresh(q.axes[-3].size // other.axes[-3].size))))
    c.unify(k.axes[-2], v.axes[-2])
    c.contract(q.axes[-1], k.axes[-1], q.null[-1] or k.null[-1])
    c.renormalizes(k.axes[-2])
    c.mark(GroupKind.HEAD_DIM, q.axes[-1], v.axes[-1])
    c.mark(GroupKind.HEAD, heads)
    if mask is not None:
        m = c.of(mask)
        scores = (*q.axes[:-1], k.axes[-2])
        for i in range(1, len(m.axes) + 1):
            if m.axes[-i].size == scores[-i].size > 1:
                c.unify(m.axes[-i], scores[-i])
    if scale is None:
        c.notes.scale_of = q.axes[-1]
    c.macs(*q.axes, k.axes[-2])
    c.macs(*q.axes[:-1], k.axes[-2], v.axes[-1])
    batch_null = tuple(v.null[-i] if v.axes[-i].size == q.axes[-i].size else False for i in range(len(q.axes), 2, -1))
    return Typing((*q.axes[:-1], v.axes[-1]), (*batch_null, False, v.null[-1]))


@on_shapes("scaled_dot_product_attention")
def _attention_on_shapes(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if q.dim() != k.dim() or q.dim() != v.dim() or q.dim() < 3:
        return NotImplemented
    batch = q.shape[:-2]
    if enable_gqa:
        heads = q.shape[-3]
        demand(k.shape[-3] > 0 and heads % k.shape[-3] == 0 and k.shape[-3] == v.shape[-3], q, k, v)
    elif not batch == k.shape[:-2] == v.shape[:-2]:
        batch = torch.broadcast_shapes(batch, k.shape[:-2], v.shape[:-2])
    demand(q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2], q, k, v)
    if attn_mask is not None:
        scores = (*batch, q.shape[-2], k.shape[-2])
        demand(torch.broadcast_shapes(scores, attn_mask.shape) == scores, q, k, attn_mask)
    return q.new_empty((*batch, q.shape[-2], v.shape[-1]))


@contracts("scaled_dot_product_attention")
def _over_head_dims(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (0, len(op.arguments[0]) - 1), (1, len(op.arguments[1]) - 1)


@rewrites("scaled_dot_product_attention")
def _scale(site: Site) -> Values:
    """Attention scales by the width of the original: 1 / sqrt(width), unless it is given another number."""
    width = site.axes("query")[-1]
    changed = site.given.get("scale") is None and site.count(width) != width.size
    return {"scale": width.size**-0.5} if changed else {}


traits("scaled_dot_product_attention", parameters=("query", "key", "value", "attn_mask"))


@rule("flex_attention")
def _flex_attention(c: Context, call: Any, result: Any) -> list[Typing]:
    """Attention whose scores go through a function of the head's and the token's number; the widths of heads are free."""
    q, k, v = (c.of(t) for t in call.args[:3])
    for axis in (*q.axes[:-1], *k.axes[:-1], *v.axes[:-1]):
        c.freeze(axis, "numbered in the function of the scores")
    c.contract(q.axes[-1], k.axes[-1], q.null[-1] or k.null[-1])
    c.mark(GroupKind.HEAD_DIM, q.axes[-1], v.axes[-1])
    c.macs(*q.axes, k.axes[-2])
    c.macs(*q.axes[:-1], k.axes[-2], v.axes[-1])
    out = Typing((*q.axes[:-1], v.axes[-1]), (False,) * 3 + (v.null[-1],))
    return [out, *(Typing(q.axes[:-1] if r.dim() == 3 else c.empty(r), (False,) * r.dim()) for r in result[1:])]
