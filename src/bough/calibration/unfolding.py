"""Contractions as matrix products: the activation as rows [blocks, N, d], the weight as [blocks, d, outputs].

Blocks are parts that share no weight: groups of a convolution, experts. Each index of the contracted axis becomes
`spread` adjacent columns: kernel positions of a convolution, or the other letters that an einsum sums over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bough.calibration.consumer_inputs import InputAxis
from bough.graph import OpRecord
from bough.ops import einsum_letters
from bough.spaces import Atom, Space, unit_positions


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A contraction as a matrix product.

    Attributes:
        x: one matrix [N, d] per block.
        w: [blocks, d, outputs].
        spread: number of adjacent columns per index of the contracted axis.
        spans_blocks: True if the axis runs over all blocks, False if each block has the whole axis.
    """

    x: Sequence[Tensor] | Tensor
    w: Tensor
    spread: int = 1
    spans_blocks: bool = False


def unit_columns(space: Space, atom: Atom, blocks: int, spread: int, spans_blocks: bool) -> NDArray[np.int64]:
    """Return the columns of each block that belong to each unit of `atom`: [blocks, units, columns].

    Args:
        space: index space of the contracted axis.
        atom: whose units are looked up.
        blocks, spread, spans_blocks: form of the matrix product, see `Unfolded`.
    """
    index = np.sort(unit_positions(space, atom), axis=1)
    block_size = space.size // blocks if spans_blocks else space.size
    if spans_blocks:
        index = np.stack([np.stack([row[row // block_size == b] % block_size for row in index]) for b in range(blocks)])
    else:
        index = np.repeat(index[None], blocks, axis=0)
    return (index[..., None] * spread + np.arange(spread)).reshape(blocks, atom.size, -1)


def unfold(axis: InputAxis, op: OpRecord, tensors: Sequence[Tensor], sites: int) -> Unfolded:
    """Return the contraction over an input axis as a matrix product.

    Args:
        axis: an axis that a weight contracts.
        op: the recorded operator.
        tensors: its tensor arguments in a run.
        sites: number of output positions per sample at which a convolution is sampled; the same ones for all samples.
    """
    assert axis.weight is not None
    x, w = tensors[axis.argument].detach(), tensors[axis.weight[0]].detach()
    if op.name == "einsum":
        return _unfold_einsum(axis, op, x, w)
    if op.name.endswith("convolution"):
        return _unfold_convolution(op, x, w, sites)
    if op.name == "_grouped_mm":
        ends = tensors[2].tolist()
        return Unfolded([x[a:b] for a, b in zip([0, *ends], ends, strict=False)], w)
    rows = x.movedim(axis.dim, -1)
    if w.dim() <= 2:
        return Unfolded(rows.reshape(1, -1, rows.shape[-1]), w.movedim(axis.weight[1], 0).reshape(1, rows.shape[-1], -1))
    return _unfold_batched(rows, w.movedim(axis.weight[1], -2))


def unfold_output(axis: InputAxis, op: OpRecord, tensors: Sequence[Tensor], y: Tensor, sites: int) -> Sequence[Tensor] | Tensor:
    """Return the result of a contraction in the form of its matrix product: [N, outputs] per block.

    Args:
        axis, op, tensors, sites: as for `unfold`; the rows of both correspond.
        y: the operator's result; its output axes may hold a selection of the weight's outputs.
    """
    assert axis.weight is not None
    x, w = tensors[axis.argument], tensors[axis.weight[0]]
    if op.name == "einsum":
        return _unfold_einsum_output(axis, op, y)
    if op.name.endswith("convolution"):
        places = y.shape[2:]
        chosen = np.unravel_index(_sampled_sites(prod(places), sites), places) if places else ()
        n = len(places)
        y = y.movedim((0, 1), (n, n + 1))[tuple(torch.from_numpy(c).to(y.device) for c in chosen)]
        y = y.movedim(-2, 0)
        return y.reshape(-1, op.detail[8], y.shape[-1] // op.detail[8]).movedim(1, 0)
    if op.name == "_grouped_mm":
        ends = tensors[2].tolist()
        return [y[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    if w.dim() == 1:
        return y.reshape(1, -1, 1)
    if (axis.argument == 1 and op.name not in ("addmm", "baddbmm") and x.dim() > 1) or axis.argument == 2:
        y = y.mT
    if w.dim() == 2:
        return y.reshape(1, -1, y.shape[-1])
    block_dims, sample_dims = _split_batch_dims(w.shape[:-2], y.dim() - 2)
    y = y.permute(*block_dims, *sample_dims, y.dim() - 2, y.dim() - 1)
    return y.reshape(prod(w.shape[:-2]), -1, y.shape[-1])


def unfold_pair(axis: InputAxis, op: OpRecord, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, int] | None:
    """Return a product of two activations as (left [blocks, N, d], right [blocks, M, d], spread); None for other operators.

    Args:
        axis: the contracted axis of one of the activations.
        op: the recorded operator.
        tensors: its tensor arguments in a run.
    """
    places = axis.contraction.places if axis.contraction else ()
    if len(places) != 2 or axis.weight is not None:
        return None
    other = next(p for p in places if p != (axis.argument, axis.dim))
    a, b = tensors[axis.argument].detach(), tensors[other[0]].detach()
    if op.name == "einsum":
        product = _unfold_einsum(replace(axis, weight=other), op, a, b)
        assert isinstance(product.x, Tensor)
        return product.x, product.w.mT, product.spread
    a, b = (t.movedim(d, -1) if t.dim() > 1 else t[None] for t, d in ((a, axis.dim), (b, other[1])))
    if op.name == "scaled_dot_product_attention" and a.shape[-3:-2] != b.shape[-3:-2]:  # grouped queries
        a, b = (t.repeat_interleave(max(a.shape[-3], b.shape[-3]) // t.shape[-3], -3) for t in (a, b))
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (t.expand(*batch, *t.shape[-2:]).reshape(prod(batch), *t.shape[-2:]) for t in (a, b))
    return a, b, 1


def _split_batch_dims(sizes: Sequence[int], n: int) -> tuple[list[int], list[int]]:
    """Split n batch dims into those over which a weight with batch dims of these `sizes` varies, and the others."""
    sizes = (1,) * (n - len(sizes)) + tuple(sizes)
    return [i for i, k in enumerate(sizes) if k > 1], [i for i, k in enumerate(sizes) if k <= 1]


def _unfold_batched(x: Tensor, w: Tensor) -> Unfolded:
    """Unfold x [..., N, d] times w [..., d, outputs]: batch dims over which w varies become blocks, the others samples."""
    batch = torch.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    block_dims, sample_dims = _split_batch_dims(w.shape[:-2], len(batch))
    x = x.expand(*batch, *x.shape[-2:]).permute(*block_dims, *sample_dims, len(batch), len(batch) + 1)
    n = prod(w.shape[:-2])
    return Unfolded(x.reshape(n, -1, x.shape[-1]), w.reshape(n, *w.shape[-2:]))


def _einsum_terms(axis: InputAxis, op: OpRecord) -> tuple[str, str, str]:
    """Return the letters of the activation, of the weight, and of the result of an einsum."""
    assert axis.weight is not None
    inputs, output = einsum_letters(op.detail[0], [len(a) for a in op.arguments])
    return inputs[axis.argument], inputs[axis.weight[0]], output


def _unfold_einsum_output(axis: InputAxis, op: OpRecord, y: Tensor) -> Tensor:
    """Return the result of an einsum as [blocks, N, outputs]."""
    x_letters, w_letters, output = _einsum_terms(axis, op)
    batch = [c for c in x_letters if c in w_letters and c in output]
    rows, outputs = ([c for c in term if c in output and c not in batch] for term in (x_letters, w_letters))
    y = y.permute([output.index(c) for c in (*batch, *rows, *outputs)])
    blocks = prod(y.shape[: len(batch)])
    return y.reshape(blocks, -1, prod(y.shape[y.dim() - len(outputs) :]))


def _unfold_einsum(axis: InputAxis, op: OpRecord, x: Tensor, w: Tensor) -> Unfolded:
    """Unfold an einsum: letters of all three tensors become blocks, letters that are summed over become columns."""
    x_letters, w_letters, output = _einsum_terms(axis, op)
    letter = x_letters[axis.dim]
    batch = [c for c in x_letters if c in w_letters and c in output]
    summed = [letter, *(c for c in x_letters if c in w_letters and c not in output and c != letter)]
    rows, outputs = ([c for c in term if c not in (*batch, *summed)] for term in (x_letters, w_letters))
    size = {c: n for term, t in ((x_letters, x), (w_letters, w)) for c, n in zip(term, t.shape, strict=True)}
    blocks, d = prod(size[c] for c in batch), prod(size[c] for c in summed)
    x = x.permute([x_letters.index(c) for c in (*batch, *rows, *summed)]).reshape(blocks, -1, d)
    w = w.permute([w_letters.index(c) for c in (*batch, *summed, *outputs)]).reshape(blocks, d, -1)
    return Unfolded(x, w, d // size[letter])


def _unfold_convolution(op: OpRecord, x: Tensor, w: Tensor, sites: int) -> Unfolded:
    """Unfold a convolution at `sites` output positions per sample (im2col); groups become blocks."""
    stride, padding, dilation, transposed, output_padding, groups = op.detail[3:9]
    kernel = w.shape[2:]
    n = len(kernel)
    stride, padding, dilation, output_padding = (
        list(v) * (n if len(v) == 1 else 1) for v in (stride, padding, dilation, output_padding)
    )
    if transposed:  # equals a convolution of the zero-interleaved input by the flipped kernel
        x = _interleave_zeros(x, stride, output_padding)
        w = w.flip(*range(2, 2 + n)).reshape(groups, -1, *w.shape[1:])  # [G, I, O, ...]
        padding = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        stride = [1] * n
    else:
        w = w.reshape(groups, -1, *w.shape[1:]).movedim(2, 1)  # [G, O, I, ...] -> [G, I, O, ...]
    x = F.pad(x, [p for pad in reversed(padding) for p in (pad, pad)])
    for i in range(n):
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])
    for i in range(n):  # [B, C, positions..., kernel...]
        x = x.movedim(2 + n + i, 0)[:: dilation[i]].movedim(0, 2 + n + i)
    chosen = np.unravel_index(_sampled_sites(prod(x.shape[2 : 2 + n]), sites), x.shape[2 : 2 + n])
    x = x.movedim((0, 1), (n, n + 1))[tuple(torch.from_numpy(c).to(x.device) for c in chosen)]
    x = x.movedim(1, 0)  # [B, sites, C, kernel...]
    x = x.reshape(*x.shape[:2], groups, w.shape[1], prod(kernel)).movedim(2, 0)
    w = w.flatten(3).movedim(3, 2)
    return Unfolded(x.reshape(groups, -1, w.shape[1] * prod(kernel)), w.reshape(groups, -1, w.shape[-1]), prod(kernel), True)


def _interleave_zeros(x: Tensor, stride: Sequence[int], output_padding: Sequence[int]) -> Tensor:
    """Return x [B, C, positions...] with stride - 1 zeros between positions and `output_padding` zeros at the end."""
    sizes = [(n - 1) * s + 1 + p for n, s, p in zip(x.shape[2:], stride, output_padding, strict=True)]
    result = x.new_zeros(*x.shape[:2], *sizes)
    places = [torch.arange(0, (n - 1) * s + 1, s, device=x.device) for n, s in zip(x.shape[2:], stride, strict=True)]
    result.movedim((0, 1), (-2, -1))[torch.meshgrid(*places, indexing="ij")] = x.movedim((0, 1), (-2, -1))
    return result


def _sampled_sites(total: int, wanted: int) -> NDArray[np.int64]:
    """Return `wanted` of `total` positions, ascending; the same for every sample, however data is batched."""
    if total <= wanted:
        return np.arange(total)
    return np.sort(np.random.default_rng(total).choice(total, wanted, replace=False))
