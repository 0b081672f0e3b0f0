"""A contraction as a matrix product: its activation as rows [blocks, N, d], its weight as [blocks, d, outputs].

Blocks are parts that share no weight: groups of a convolution, experts. Each index of the contracted axis becomes
`spread` neighbouring columns: kernel positions of a convolution, other letters that an einsum sums over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bough.graph import OpRecord
from bough.importance.readings import Reading
from bough.importance.reduce import positions
from bough.rules.contraction import einsum_letters
from bough.spaces import Atom, Space


@dataclass(frozen=True, slots=True)
class Unfolded:
    """x: one [N, d] for each block. w: [blocks, d, outputs]. `whole`: the axis runs over all blocks, not within each."""

    x: Sequence[Tensor] | Tensor
    w: Tensor
    spread: int = 1
    whole: bool = False


def columns(space: Space, atom: Atom, blocks: int, spread: int, whole: bool) -> NDArray[np.int64]:
    """[blocks, units, columns]: the columns of each block that belong to each unit."""
    index = np.sort(positions(space, atom), axis=1)
    each = space.size // blocks if whole else space.size
    if whole:
        index = np.stack([np.stack([row[row // each == b] % each for row in index]) for b in range(blocks)])
    else:
        index = np.repeat(index[None], blocks, axis=0)
    return (index[..., None] * spread + np.arange(spread)).reshape(blocks, atom.size, -1)


def unfold(reading: Reading, op: OpRecord, tensors: Sequence[Tensor], sites: int) -> Unfolded:
    """The reading's contraction; of a convolution, `sites` output positions of each sample, the same for all."""
    assert reading.weight is not None
    x, w = tensors[reading.argument].detach(), tensors[reading.weight[0]].detach()
    if op.name == "einsum":
        return _einsum(reading, op, x, w)
    if op.name.endswith("convolution"):
        return _convolution(op, x, w, sites)
    if op.name == "_grouped_mm":
        ends = tensors[2].tolist()
        return Unfolded([x[a:b] for a, b in zip([0, *ends], ends, strict=False)], w)
    rows = x.movedim(reading.dim, -1)
    if w.dim() <= 2:
        return Unfolded(rows.reshape(1, -1, rows.shape[-1]), w.movedim(reading.weight[1], 0).reshape(1, rows.shape[-1], -1))
    return _batched(rows, w.movedim(reading.weight[1], -2))


def outcome(reading: Reading, op: OpRecord, tensors: Sequence[Tensor], y: Tensor, sites: int) -> Sequence[Tensor] | Tensor:
    """What the op gives, [N, outputs] for each block: the rows that `unfold` has of its arguments `tensors`.

    Axes of `y` may be shorter than the op's own weights make them: some outputs alone.
    """
    assert reading.weight is not None
    x, w = tensors[reading.argument], tensors[reading.weight[0]]
    if op.name == "einsum":
        return _einsum_outcome(reading, op, w, y)
    if op.name.endswith("convolution"):
        places = y.shape[2:]
        chosen = np.unravel_index(_sites(prod(places), sites), places) if places else ()
        n = len(places)
        y = y.movedim((0, 1), (n, n + 1))[tuple(torch.from_numpy(c).to(y.device) for c in chosen)]
        y = y.movedim(-2, 0)
        return y.reshape(-1, op.detail[8], y.shape[-1] // op.detail[8]).movedim(1, 0)
    if op.name == "_grouped_mm":
        ends = tensors[2].tolist()
        return [y[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    if w.dim() == 1:
        return y.reshape(1, -1, 1)
    if (reading.argument == 1 and op.name not in ("addmm", "baddbmm") and x.dim() > 1) or reading.argument == 2:
        y = y.mT
    if w.dim() == 2:
        return y.reshape(1, -1, y.shape[-1])
    blocks, others = _blocks(w.shape[:-2], y.dim() - 2)
    y = y.permute(*blocks, *others, y.dim() - 2, y.dim() - 1)
    return y.reshape(prod(w.shape[:-2]), -1, y.shape[-1])


def _blocks(own: Sequence[int], n: int) -> tuple[list[int], list[int]]:
    """Of n batch dims: those in which a weight of batch dims `own` differs, and the others."""
    own = (1,) * (n - len(own)) + tuple(own)
    return [i for i, k in enumerate(own) if k > 1], [i for i, k in enumerate(own) if k <= 1]


def _batched(x: Tensor, w: Tensor) -> Unfolded:
    """x [..., N, d] by w [..., d, outputs]: dims in which w differs are blocks, the others samples."""
    batch = torch.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    blocks, others = _blocks(w.shape[:-2], len(batch))
    x = x.expand(*batch, *x.shape[-2:]).permute(*blocks, *others, len(batch), len(batch) + 1)
    n = prod(w.shape[:-2])
    return Unfolded(x.reshape(n, -1, x.shape[-1]), w.reshape(n, *w.shape[-2:]))


def _einsum_outcome(reading: Reading, op: OpRecord, w: Tensor, y: Tensor) -> Tensor:
    assert reading.weight is not None
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    ours, theirs = inputs[reading.argument], inputs[reading.weight[0]]
    batch = [c for c in ours if c in theirs and c in output]
    free = [[c for c in term if c in output and c not in batch] for term in (ours, theirs)]
    y = y.permute([output.index(c) for c in (*batch, *free[0], *free[1])])
    blocks = prod(y.shape[: len(batch)])
    return y.reshape(blocks, -1, prod(y.shape[y.dim() - len(free[1]) :]))


def _einsum(reading: Reading, op: OpRecord, x: Tensor, w: Tensor) -> Unfolded:
    assert reading.weight is not None
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    ours, theirs = inputs[reading.argument], inputs[reading.weight[0]]
    letter = ours[reading.dim]
    batch = [c for c in ours if c in theirs and c in output]
    summed = [letter, *(c for c in ours if c in theirs and c not in output and c != letter)]
    free = [[c for c in term if c not in (*batch, *summed)] for term in (ours, theirs)]
    size = {c: n for term, t in ((ours, x), (theirs, w)) for c, n in zip(term, t.shape, strict=True)}
    blocks, d = prod(size[c] for c in batch), prod(size[c] for c in summed)
    x = x.permute([ours.index(c) for c in (*batch, *free[0], *summed)]).reshape(blocks, -1, d)
    w = w.permute([theirs.index(c) for c in (*batch, *summed, *free[1])]).reshape(blocks, d, -1)
    return Unfolded(x, w, d // size[letter])


def _convolution(op: OpRecord, x: Tensor, w: Tensor, sites: int) -> Unfolded:
    stride, padding, dilation, transposed, extra, groups = op.detail[3:9]
    kernel = w.shape[2:]
    n = len(kernel)
    stride, padding, dilation, extra = (list(v) * (n if len(v) == 1 else 1) for v in (stride, padding, dilation, extra))
    if transposed:  # as a convolution of the input with zeros between, by the flipped kernel
        x = _stuffed(x, stride, extra)
        w = w.flip(*range(2, 2 + n)).reshape(groups, -1, *w.shape[1:])  # [G, I, O, ...]
        padding = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        stride = [1] * n
    else:
        w = w.reshape(groups, -1, *w.shape[1:]).movedim(2, 1)  # [G, O, I, ...] -> [G, I, O, ...]
    x = F.pad(x, [p for pad in reversed(padding) for p in (pad, pad)])
    for i in range(n):
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])
    for i in range(n):  # [B, C, places..., kernel...]
        x = x.movedim(2 + n + i, 0)[:: dilation[i]].movedim(0, 2 + n + i)
    chosen = np.unravel_index(_sites(prod(x.shape[2 : 2 + n]), sites), x.shape[2 : 2 + n])
    x = x.movedim((0, 1), (n, n + 1))[tuple(torch.from_numpy(c).to(x.device) for c in chosen)]
    x = x.movedim(1, 0)  # [B, sites, C, kernel...]
    x = x.reshape(*x.shape[:2], groups, w.shape[1], prod(kernel)).movedim(2, 0)
    w = w.flatten(3).movedim(3, 2)
    return Unfolded(x.reshape(groups, -1, w.shape[1] * prod(kernel)), w.reshape(groups, -1, w.shape[-1]), prod(kernel), True)


def _stuffed(x: Tensor, stride: Sequence[int], extra: Sequence[int]) -> Tensor:
    sizes = [(n - 1) * s + 1 + e for n, s, e in zip(x.shape[2:], stride, extra, strict=True)]
    result = x.new_zeros(*x.shape[:2], *sizes)
    places = [torch.arange(0, (n - 1) * s + 1, s, device=x.device) for n, s in zip(x.shape[2:], stride, strict=True)]
    result.movedim((0, 1), (-2, -1))[torch.meshgrid(*places, indexing="ij")] = x.movedim((0, 1), (-2, -1))
    return result


def _sites(total: int, wanted: int) -> NDArray[np.int64]:
    """The same positions for every sample, so that batches do not matter."""
    if total <= wanted:
        return np.arange(total)
    return np.sort(np.random.default_rng(total).choice(total, wanted, replace=False))


def factors(reading: Reading, op: OpRecord, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, int] | None:
    """Of a product of two activations: (left [blocks, N, d], right [blocks, M, d], spread); None if this is no such product."""
    places = reading.contraction.places if reading.contraction else ()
    if len(places) != 2 or reading.weight is not None:
        return None
    other = next(p for p in places if p != (reading.argument, reading.dim))
    a, b = tensors[reading.argument].detach(), tensors[other[0]].detach()
    if op.name == "einsum":
        whole = _einsum(Reading(reading.op, reading.argument, reading.dim, reading.contraction, other), op, a, b)
        assert isinstance(whole.x, Tensor)
        return whole.x, whole.w.mT, whole.spread
    a, b = (t.movedim(d, -1) if t.dim() > 1 else t[None] for t, d in ((a, reading.dim), (b, other[1])))
    if op.name == "scaled_dot_product_attention" and a.shape[-3:-2] != b.shape[-3:-2]:  # grouped queries
        a, b = (t.repeat_interleave(max(a.shape[-3], b.shape[-3]) // t.shape[-3], -3) for t in (a, b))
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (t.expand(*batch, *t.shape[-2:]).reshape(prod(batch), *t.shape[-2:]) for t in (a, b))
    return a, b, 1
