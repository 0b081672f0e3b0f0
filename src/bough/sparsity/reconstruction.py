"""SparseGPT: remove elements input by input, and let the elements not yet visited make up for each error.

The second moments of the inputs are those that refit uses. Each layer is solved on the inputs that the sparse layers before it
give, so errors do not add up unseen; the price is one pass over the data per layer input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.calibration import TINY, Data, InnerProducts, InputAxis, Moments, collect_moments
from bough.errors import PlanError
from bough.graph import Graph
from bough.sparsity.patterns import Pattern
from bough.sparsity.selection import keep_highest
from bough.sparsity.weight_matrices import WeightMatrix

_COLUMNS = 128  # inputs whose masks are chosen together, as in the paper


@dataclass(frozen=True, slots=True)
class Solved:
    """A sparse weight in float64 and its mask, [blocks, inputs, outputs]; E|x (w - solved)|^2 as a share of E|x w|^2."""

    weight: Tensor
    keep: Tensor
    error: float


def reconstruct_(
    graph: Graph, matrices: Sequence[WeightMatrix], data: Data, counts: Sequence[int], pattern: Pattern | None, *,
    damping: float, sites: int,
) -> list[Solved]:  # fmt: skip
    """Make each weight sparse in place, in the order of the run, and return what was solved.

    Source: Frantar and Alistarh, 2023 (SparseGPT); Hassibi and Stork, 1993 (optimal brain surgeon).

    Args:
        graph: of the model that is changed.
        matrices: in the order of the run.
        data: calibration data that gives the same batches in each pass.
        counts: elements that each matrix keeps; not used with a pattern.
        pattern: N:M, or None.
        damping: added to the diagonal of the moments, as a share of its mean.
        sites: number of output positions per sample at which a convolution is sampled.

    Raises:
        PlanError: as `Data.stream`, or the data gives numbers that are not finite.
    """
    solved: list[Solved] = []
    for number, stage in enumerate(_stages(graph, matrices)):
        moments = collect_moments(graph, data, [a for m in stage for a in m.axes], sites=sites, title=f"reconstruct {number}")
        for matrix in stage:
            weight = matrix.gather(graph.tensor(matrix.name)).double()
            second = _second(matrix, moments)
            result = solve_sparse(weight, second, counts[len(solved)], pattern, matrix.spread, damping)
            matrix.scatter_(graph.tensor(matrix.name), result.weight)
            solved.append(result)
    return solved


def obs_scores(graph: Graph, matrices: Sequence[WeightMatrix], data: Data, damping: float, sites: int) -> list[Tensor]:
    """Return w^2 / [H^-1]_ii of each matrix, on the dense model's inputs: the error that removing one element costs."""
    moments = collect_moments(graph, data, [a for m in matrices for a in m.axes], sites=sites, title="optimal brain surgeon")
    scores = []
    for matrix in matrices:
        weight = matrix.gather(graph.tensor(matrix.name)).double()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(_second(matrix, moments), damping)))
        scores.append(weight.square() / inverse.diagonal(dim1=-2, dim2=-1)[:, :, None])
    return scores


def solve_sparse(weight: Tensor, second: Tensor, count: int, pattern: Pattern | None, spread: int, damping: float) -> Solved:
    """Return a sparse weight that reproduces the outputs of `weight`.

    Args:
        weight: w, float64 [blocks, inputs, outputs].
        second: E[x x^T], [blocks, inputs, inputs].
        count: elements that stay; not used with a pattern.
        pattern: N:M along input channels, or None.
        spread: number of adjacent inputs per channel.
        damping: as a share of the mean of the diagonal.
    """
    order = torch.arange(weight.shape[1], device=weight.device)
    if pattern is not None:  # the members of a group side by side
        order = order.view(-1, pattern.m, spread).transpose(1, 2).flatten()
    shares = _block_counts(count, len(weight))
    parts = [
        _solve_block(w[order], h[order][:, order], c, pattern, damping)
        for w, h, c in zip(weight, second, shares, strict=True)
    ]  # fmt: skip
    back = order.argsort()
    new, keep = (torch.stack([p[i][back] for p in parts]) for i in (0, 1))
    difference = weight - new
    lost, whole = ((v * (second @ v)).sum() for v in (difference, weight))
    return Solved(new, keep.bool(), float(lost / whole) if whole > 0 else 0.0)


def _solve_block(w: Tensor, second: Tensor, count: int, pattern: Pattern | None, damping: float) -> tuple[Tensor, Tensor]:
    """Return the sparse weight and its mask of one block, w [inputs, outputs]."""
    inputs, outputs = w.shape
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(second[None], damping)[0]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    w, keep = w.clone(), torch.zeros(w.shape, dtype=torch.bool, device=w.device)
    width = _COLUMNS if pattern is None else max(1, _COLUMNS // pattern.m) * pattern.m
    for start in range(0, inputs, width):
        end = min(start + width, inputs)
        diagonal = upper.diagonal()[start:end, None]
        if pattern is None:
            chosen = round(count * end / inputs) - round(count * start / inputs)
            keep[start:end] = keep_highest((w[start:end] / diagonal).square()[None], chosen)[0]
        errors = torch.zeros(end - start, outputs, dtype=w.dtype, device=w.device)
        for i in range(start, end):
            if pattern is not None and (i - start) % pattern.m == 0:
                group = slice(i, i + pattern.m)
                keep[group] = pattern.keep((w[group] / upper.diagonal()[group, None]).square()[None], 1)[0]
            removed = torch.where(keep[i], 0.0, w[i]) / upper[i, i]
            w[i:end] -= upper[i, i:end, None] * removed
            errors[i - start] = removed
        w[end:] -= upper[start:end, end:].mT @ errors
    return torch.where(keep, w, 0.0), keep


def _block_counts(count: int, blocks: int) -> list[int]:
    """Return how many elements each block keeps: equally many, or one more."""
    return [count * (i + 1) // blocks - count * i // blocks for i in range(blocks)]


def _damped(second: Tensor, damping: float) -> Tensor:
    """Return moments that can be inverted: with a share of the mean of the diagonal added to the diagonal."""
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    scale = damping * diagonal.mean(-1, keepdim=True) + TINY
    silent = torch.where(diagonal == 0, 1.0, 0.0) * diagonal.mean(-1, keepdim=True).clamp_min(TINY)
    return second + torch.diag_embed(scale + silent)


def _second(matrix: WeightMatrix, moments: Mapping[InputAxis, Moments | InnerProducts]) -> Tensor:
    """Return E[x x^T] of a matrix, the mean over the operators that read it.

    Raises:
        PlanError: the data does not reach it, or is not finite.
    """
    found = [moments[axis] for axis in matrix.axes if axis in moments]
    seconds = [m.second for m in found if isinstance(m, Moments)]
    if not seconds:
        raise PlanError(
            f"the data does not reach {matrix.name}: give data that takes the traced path, or ignore={matrix.name!r}"
        )
    second = torch.stack(seconds).mean(0)
    if not second.isfinite().all():
        raise PlanError(f"the inputs of {matrix.name} are not finite on this data")
    return second


def _stages(graph: Graph, matrices: Sequence[WeightMatrix]) -> Iterator[list[WeightMatrix]]:
    """Yield adjacent matrices that read the same value together: one pass over the data serves all of them."""
    stage: list[WeightMatrix] = []
    for matrix in matrices:
        values = [graph.ops[a.op].inputs[a.argument] for m in (*stage[:1], matrix) for a in m.axes[:1]]
        if len(set(values)) > 1:
            yield stage
            stage = []
        stage.append(matrix)
    if stage:
        yield stage
