"""Linear layers, matrix products, convolutions, embeddings, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bough.rules.context import KERNEL, Context, Typing, argument, rule
from bough.spaces import UNIT, Product, Space, freeze, is_frozen, product


def _bias(c: Context, bias: Any, axis: Space) -> bool:
    """Types a bias over `axis`; says whether the bias is zero for masked units."""
    if bias is None:
        return True
    b = c.of(bias)
    if b.axes and b.axes[-1].size == axis.size:
        c.unify(b.axes[-1], axis)
        return b.null[-1]
    return False


@rule("linear")
def _linear(c: Context, call: Any, result: Any) -> Typing:
    x, w, bias = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "bias")
    c.contract(x.axes[-1], w.axes[-1], x.null[-1] or w.null[-1])
    if len(w.axes) == 1:
        return Typing(x.axes[:-1], x.null[:-1])
    null = _bias(c, bias, w.axes[0])
    c.mark("neuron", w.axes[0])
    c.macs(*x.axes, w.axes[0])
    others = x.null[:-1] if bias is None else (False,) * (len(x.axes) - 1)
    return Typing((*x.axes[:-1], w.axes[0]), (*others, w.null[0] and null))


@rule("mm", "bmm", "addmm", "baddbmm", "_sparse_mm", "_sparse_addmm")
def _matmul(c: Context, call: Any, result: Any) -> Typing:
    biased = call.name.startswith(("addmm", "baddbmm", "_sparse_addmm"))
    a, b = (c.of(t) for t in (call.args[1:3] if biased else call.args[:2]))
    c.contract(a.axes[-1], b.axes[-2], a.null[-1] or b.null[-2])
    batch, batch_null = a.axes[:-2], tuple(p or q for p, q in zip(a.null[:-2], b.null[:-2], strict=True))
    for p, q in zip(batch, b.axes[:-2], strict=True):
        c.unify(p, q)
    if not (a.weight or b.weight):
        c.mark("head_dim", a.axes[-1])
        c.mark("head", *batch)
    else:
        c.mark("neuron", b.axes[-1] if b.weight else a.axes[-2])
    c.macs(*a.axes, b.axes[-1])
    axes = (*batch, a.axes[-2], b.axes[-1])
    null = [*batch_null, a.null[-2], b.null[-1]]
    if biased:
        bias = c.of(call.args[0])
        for i in range(1, len(axes) + 1):
            own = len(bias.axes) >= i and bias.axes[-i].size == axes[-i].size and axes[-i].size > 1
            if own:
                c.unify(bias.axes[-i], axes[-i])
            null[-i] = null[-i] and own and bias.null[-i]
    return Typing(axes, tuple(null), a.weight and b.weight)


@rule("_grouped_mm")
def _grouped(c: Context, call: Any, result: Any) -> Any:
    """Rows [N, K] in consecutive groups, each by a matrix [E, K, M] of its own; `offs` [E] tells where groups end.

    Rows of memory have to start at multiples of 16 bytes.
    """
    x, w, ends = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "offs")
    if len(x.axes) != 2 or len(w.axes) != 3 or ends is None:
        return []
    c.contract(x.axes[-1], w.axes[1], x.null[-1] or w.null[1])
    c.unify(w.axes[0], c.of(ends).axes[0])
    c.mark("neuron", w.axes[2])
    for t, axis in ((call.args[0], x.axes[1]), (call.args[1], w.axes[1] if call.args[1].stride(1) == 1 else w.axes[2])):
        c.multiple(axis, 16 // min(t.element_size(), 16))
    c.macs(*x.axes, w.axes[2])
    return Typing((x.axes[0], w.axes[2]), (x.null[0], w.null[2]))


@rule("matmul")
def _general_matmul(c: Context, call: Any, result: Any) -> Typing:
    a, b = c.of(call.args[0]), c.of(argument(call, 1, "other"))
    inner = -1 if len(b.axes) == 1 else -2
    c.contract(a.axes[-1], b.axes[inner], a.null[-1] or b.null[inner])
    rows = [(a.axes[-2], a.null[-2])] if len(a.axes) > 1 else []
    columns = [(b.axes[-1], b.null[-1])] if len(b.axes) > 1 else []
    batch: list[tuple[Space, bool]] = []
    for i in range(3, max(len(a.axes), len(b.axes)) + 1):
        present = [(t.axes[-i], t.null[-i]) for t in (a, b) if len(t.axes) >= i and t.axes[-i].size > 1]
        for other, _ in present[1:]:
            c.unify(present[0][0], other)
        batch.insert(0, (present[0][0], any(n for _, n in present)) if present else (UNIT, True))
    if not (a.weight or b.weight):
        c.mark("head_dim", a.axes[-1])
        c.mark("head", *(s for s, _ in batch))
    else:
        c.mark("neuron", *(s for s, _ in (columns if b.weight else rows)))
    both = [*batch, *rows, *columns]
    c.macs(*(s for s, _ in both), a.axes[-1])
    return Typing(tuple(s for s, _ in both), tuple(n for _, n in both), a.weight and b.weight)


@rule("einsum")
def _einsum(c: Context, call: Any, result: Any) -> Typing:
    operands = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    typed = [c.of(t) for t in operands]
    inputs, output = einsum_letters(call.args[0], [len(t.axes) for t in typed])
    return _product(c, typed, inputs, output)


@rule("_trilinear")
def _trilinear(c: Context, call: Any, result: Any) -> Typing:
    """The product of three tensors, stretched along the axes that each lacks, summed over some."""
    typed = [c.of(t) for t in call.args[:3]]
    rank = len(typed[0].axes) + len(call.args[3])
    inputs = [[d for d in range(rank) if d not in lacks] for lacks in call.args[3:6]]
    return _product(c, typed, inputs, [d for d in range(rank) if d not in call.args[6]])


def _product(c: Context, typed: list[Typing], inputs: Sequence[Sequence[Any]], output: Sequence[Any]) -> Typing:
    """Multiplies tensors whose axes have names (`inputs`), and sums over the names that are not in `output`."""
    space: dict[Any, Space] = {}
    null: dict[Any, bool] = {}
    where: dict[Any, int] = {}
    for letters, t in zip(inputs, typed, strict=True):
        for letter, axis, zero in zip(letters, t.axes, t.null, strict=True):
            if axis.size == 1 and letter in space:
                continue
            if letter in space and space[letter].size > 1:
                c.unify(space[letter], axis)
            else:
                space[letter] = axis
            null[letter] = null.get(letter, False) or zero
            where[letter] = where.get(letter, 0) + 1
    weights = [t.weight for t in typed]
    for letter in space.keys() - set(output):
        c.notes.combined.append(space[letter])
        if where[letter] > 1 or any(weights):
            c.contract(space[letter], space[letter], null[letter])
            if not any(weights):
                c.mark("head_dim", space[letter])
        elif not null[letter]:
            c.renormalizes(space[letter])
            c.mark("consumed", space[letter])
    if not any(weights):
        c.mark("head", *(space[x] for x in output if where[x] > 1))
    if len(typed) > 1:
        c.macs(*space.values())
    return Typing(tuple(space[x] for x in output), tuple(null[x] for x in output), all(weights))


def einsum_letters(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; dims under an ellipsis get letters of their own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    named = [len(t.replace("...", "")) for t in terms]
    widest = max([n - k for t, n, k in zip(terms, dims, named, strict=True) if "..." in t], default=0)
    extra = "".join(chr(0x100 + i) for i in range(widest))
    inputs = [t.replace("...", extra[widest - (n - k) :]) for t, n, k in zip(terms, dims, named, strict=True)]
    if not arrow:
        joined = "".join(t.replace("...", "") for t in terms)
        right = ("..." if "..." in left else "") + "".join(sorted(x for x in set(joined) if joined.count(x) == 1))
    return inputs, right.replace("...", extra)


@rule("addmv", "addr", "addbmm")
def _added(c: Context, call: Any, result: Any) -> Typing:
    """A product (matrix by vector, outer, summed over a batch) that is added to a tensor."""
    names = {"addmv": ("ij", "j", "i"), "addr": ("i", "j", "ij"), "addbmm": ("bij", "bjk", "ik")}
    base, one, two = (c.of(t) for t in call.args[:3])
    first, second, output = names[call.name.rstrip("_")]
    made = _product(c, [one, two], [first, second], output)
    null = list(made.null)
    for i in range(1, len(made.axes) + 1):
        own = len(base.axes) >= i and base.axes[-i].size == made.axes[-i].size
        if own:
            c.unify(base.axes[-i], made.axes[-i])
        null[-i] = null[-i] and own and base.null[-i]
    return Typing(made.axes, tuple(null))


@rule("mv", "dot", "vdot")
def _vector(c: Context, call: Any, result: Any) -> Typing:
    a, b = c.of(call.args[0]), c.of(call.args[1])
    c.contract(a.axes[-1], b.axes[0], a.null[-1] or b.null[0])
    c.macs(*a.axes)
    return Typing(a.axes[:-1], a.null[:-1])


@rule("convolution", "_convolution")
def _convolution(c: Context, call: Any, result: Any) -> Typing:
    x, w, bias = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "bias")
    transposed, groups = call.args[6], call.args[8]
    kernel = w.axes[2:]
    for k in kernel:
        if k.size > 1:
            freeze(k, KERNEL)
    inner, outer = (w.axes[0], w.axes[1]) if transposed else (w.axes[1], w.axes[0])
    null_in = x.null[1] or w.null[0 if transposed else 1]
    columns = enumerate(zip(x.axes[2:], kernel, result.shape[2:], strict=True))
    spatial = tuple(_position(c, call, i, axis, k.size, n) for i, (axis, k, n) in columns)
    counted = x.axes[2:] if transposed else spatial
    if groups == 1:
        c.contract(x.axes[1], inner, null_in)
        c.macs(x.axes[0], *counted, inner, outer, *kernel)
    else:
        g = c.fresh(groups)
        c.notes.integers["groups"] = g
        if transposed:  # weight [G x I, O, ...]
            each_in, each_out = c.fresh(inner.size // groups), outer
            c.unify(inner, Product((g, each_in)))
            outer = product(g, each_out)
        else:  # weight [G x O, I, ...]
            each_in, each_out = inner, c.fresh(outer.size // groups)
            c.unify(outer, Product((g, each_out)))
        c.unify(x.axes[1], Product((g, each_in)))
        c.contract(each_in, each_in, null_in)
        c.mark("consumed", g)
        c.macs(x.axes[0], *counted, g, each_in, each_out, *kernel)
    c.mark("channel", outer)
    null = w.null[1 if transposed else 0] or (groups == x.axes[1].size == outer.size and x.null[1])  # or depthwise
    null = _bias(c, bias, outer) and null
    zero = tuple(is_frozen(a) or (n and bias is None) for a, n in zip(spatial, x.null[2:], strict=True))
    return Typing((x.axes[0], outer, *spatial), (x.null[0] and bias is None, null, *zero))


def _position(c: Context, call: Any, i: int, axis: Space, kernel: int, size: int) -> Space:
    """A spatial axis passes a kernel of size 1 as it is; a larger one sees which positions are neighbours."""
    stride, padding = (given[i if len(given) > 1 else 0] for given in call.args[3:5])
    if kernel == stride == 1 and padding == 0 and size == axis.size:
        return axis
    c.freeze(axis, "spatial position")
    return c.data(size, "spatial position")


@rule("embedding")
def _embedding(c: Context, call: Any, result: Any) -> Typing:
    w, index = c.of(call.args[0]), c.of(call.args[1])
    c.pick(w.axes[0], index, "indexed by data", w)
    c.mark("residual", w.axes[1])
    return Typing((*index.axes, w.axes[1]), (*(False,) * len(index.axes), w.null[1]))


@rule("flex_attention")
def _flex_attention(c: Context, call: Any, result: Any) -> list[Typing]:
    """Attention whose scores go through a function of the head's and the token's number; the widths of heads are free."""
    q, k, v = (c.of(t) for t in call.args[:3])
    for axis in (*q.axes[:-1], *k.axes[:-1], *v.axes[:-1]):
        c.freeze(axis, "numbered in the function of the scores")
    c.contract(q.axes[-1], k.axes[-1], q.null[-1] or k.null[-1])
    c.mark("head_dim", q.axes[-1], v.axes[-1])
    c.macs(*q.axes, k.axes[-2])
    c.macs(*q.axes[:-1], k.axes[-2], v.axes[-1])
    out = Typing((*q.axes[:-1], v.axes[-1]), (False,) * 3 + (v.null[-1],))
    return [out, *(Typing(q.axes[:-1] if r.dim() == 3 else c.empty(r), (False,) * r.dim()) for r in result[1:])]


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
    c.mark("head_dim", q.axes[-1], v.axes[-1])
    c.mark("head", heads)
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
