"""Linear layers, and products of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from bough.graph import GroupKind
from bough.ops.context import Context, Typing, argument
from bough.ops.meta import demand
from bough.ops.spec import Place, Places, RecordedOp, contracts, contracts_within, on_shapes, rule, traits
from bough.spaces import UNIT, Space


def type_bias(c: Context, bias: Any, axis: Space) -> bool:
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
    null = type_bias(c, bias, w.axes[0])
    c.mark(GroupKind.NEURON, w.axes[0])
    c.macs(*x.axes, w.axes[0])
    others = x.null[:-1] if bias is None else (False,) * (len(x.axes) - 1)
    return Typing((*x.axes[:-1], w.axes[0]), (*others, w.null[0] and null))


@on_shapes("linear")
def _linear_on_shapes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if weight.dim() != 2 or x.dtype != weight.dtype:
        return NotImplemented
    demand(x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1]), x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@contracts("linear")
def _over_inputs(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (0, len(op.arguments[0]) - 1), (1, len(op.arguments[1]) - 1)


@rule("mm", "bmm", "addmm", "baddbmm", "_sparse_mm", "_sparse_addmm")
def _matmul(c: Context, call: Any, result: Any) -> Typing:
    biased = call.name.startswith(("addmm", "baddbmm", "_sparse_addmm"))
    a, b = (c.of(t) for t in (call.args[1:3] if biased else call.args[:2]))
    c.contract(a.axes[-1], b.axes[-2], a.null[-1] or b.null[-2])
    batch, batch_null = a.axes[:-2], tuple(p or q for p, q in zip(a.null[:-2], b.null[:-2], strict=True))
    for p, q in zip(batch, b.axes[:-2], strict=True):
        c.unify(p, q)
    if not (a.weight or b.weight):
        c.mark(GroupKind.HEAD_DIM, a.axes[-1])
        c.mark(GroupKind.HEAD, *batch)
    else:
        c.mark(GroupKind.NEURON, b.axes[-1] if b.weight else a.axes[-2])
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
    """Rows [N, K] in consecutive groups, each by a matrix [E, K, M] of its own; `offs` [E] says where groups end.

    Rows of memory have to start at multiples of 16 bytes.
    """
    x, w, ends = c.of(call.args[0]), c.of(call.args[1]), argument(call, 2, "offs")
    if len(x.axes) != 2 or len(w.axes) != 3 or ends is None:
        return []
    c.contract(x.axes[-1], w.axes[1], x.null[-1] or w.null[1])
    c.unify(w.axes[0], c.of(ends).axes[0])
    c.mark(GroupKind.NEURON, w.axes[2])
    for t, axis in ((call.args[0], x.axes[1]), (call.args[1], w.axes[1] if call.args[1].stride(1) == 1 else w.axes[2])):
        c.multiple(axis, 16 // min(t.element_size(), 16))
    c.macs(*x.axes, w.axes[2])
    return Typing((x.axes[0], w.axes[2]), (x.null[0], w.null[2]))


@on_shapes("_grouped_mm")
def _grouped_on_shapes(x: Tensor, weight: Tensor, offs: Tensor | None = None, *rest: Any, **more: Any) -> Any:
    if x.dim() != 2 or weight.dim() != 3 or offs is None:
        return NotImplemented
    demand(x.shape[1] == weight.shape[1] and offs.shape == weight.shape[:1], x, weight, offs)
    return x.new_empty((x.shape[0], weight.shape[2]))


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
        c.mark(GroupKind.HEAD_DIM, a.axes[-1])
        c.mark(GroupKind.HEAD, *(s for s, _ in batch))
    else:
        c.mark(GroupKind.NEURON, *(s for s, _ in (columns if b.weight else rows)))
    both = [*batch, *rows, *columns]
    c.macs(*(s for s, _ in both), a.axes[-1])
    return Typing(tuple(s for s, _ in both), tuple(n for _, n in both), a.weight and b.weight)


def _pair(a: int, b: int) -> Places:
    """Last axis of argument a with the axis before the last of argument b."""

    def places(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
        yield (a, len(op.arguments[a]) - 1), (b, max(len(op.arguments[b]) - 2, 0))

    return places


traits("mm", "bmm", "matmul", "mv", "dot", "vdot", "_grouped_mm", contracts=_pair(0, 1))
traits("addmm", "baddbmm", contracts=_pair(1, 2))
traits("linear", parameters=("input", "weight", "bias"))
traits("matmul", parameters=("input", "other"))
traits("bmm", "mm", parameters=("input", "mat2"))


@rule("einsum")
def _einsum(c: Context, call: Any, result: Any) -> Typing:
    operands = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    typed = [c.of(t) for t in operands]
    inputs, output = einsum_letters(call.args[0], [len(t.axes) for t in typed])
    return _product(c, typed, inputs, output)


@contracts("einsum")
def _over_letters(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    for letter in dict.fromkeys("".join(inputs)):
        places = tuple((i, term.index(letter)) for i, term in enumerate(inputs) if letter in term)
        if letter not in output and len(places) > 1:
            yield places


@rule("_trilinear")
def _trilinear(c: Context, call: Any, result: Any) -> Typing:
    """The product of three tensors, stretched along the axes that each lacks, summed over some."""
    typed = [c.of(t) for t in call.args[:3]]
    rank = len(typed[0].axes) + len(call.args[3])
    inputs = [[d for d in range(rank) if d not in lacks] for lacks in call.args[3:6]]
    return _product(c, typed, inputs, [d for d in range(rank) if d not in call.args[6]])


@contracts_within("_trilinear")
def _over_dims(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    rank = len(op.arguments[0]) + len(op.detail[3])
    dims = [[d for d in range(rank) if d not in lacking] for lacking in op.detail[3:6]]
    for d in op.detail[6]:
        yield tuple((i, have.index(d % rank)) for i, have in enumerate(dims) if d % rank in have)


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
                c.mark(GroupKind.HEAD_DIM, space[letter])
        elif not null[letter]:
            c.renormalizes(space[letter])
            c.consume(space[letter])
    if not any(weights):
        c.mark(GroupKind.HEAD, *(space[x] for x in output if where[x] > 1))
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


@contracts_within("addbmm")
def _over_batches(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (1, 2), (2, 1)
    yield (1, 0), (2, 0)


@contracts_within("addmv")
def _over_columns(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (1, 1), (2, 0)


@rule("mv", "dot", "vdot")
def _vector(c: Context, call: Any, result: Any) -> Typing:
    a, b = c.of(call.args[0]), c.of(call.args[1])
    c.contract(a.axes[-1], b.axes[0], a.null[-1] or b.null[0])
    c.macs(*a.axes)
    return Typing(a.axes[:-1], a.null[:-1])
