"""Second moments of the inputs of consumers, from one streaming pass: the statistics that least squares needs.

Memory grows with the square of each consumer's input width and does not depend on the amount of data. Refit and the
reconstruction criteria use these moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration.consumer_inputs import InputAxis
from bough.calibration.data import Data
from bough.calibration.passes import tapped_pass
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap
from bough.calibration.unfolding import unfold, unfold_pair, unit_columns
from bough.graph import Graph, OpRecord
from bough.spaces import Atom, Space, unit_positions

TINY = torch.finfo(torch.float64).tiny ** 0.5


def rounding_floor(second: Tensor) -> Tensor:
    """Return the variance below which a covariance may consist of rounding errors alone.

    Args:
        second: E[x x^T], [blocks, d, d], before means are subtracted.

    Returns:
        [blocks, 1, 1], to be added to the diagonal of a covariance before it is inverted.
    """
    return 1e-12 * second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the input x of a consumer y = x w, all float64.

    Attributes:
        second: E[x x^T], [blocks, d, d]. Blocks share no weight: groups of a convolution, experts.
        mean: E[x], [blocks, d].
        weight: w, [blocks, d, outputs].
        space: index space of the contracted axis.
        spread: number of adjacent columns per index, such as kernel positions of a convolution.
        spans_blocks: True if the axis runs over all blocks, False if each block has the whole axis.
        biased: True if the consumer adds a bias, which can absorb means.
    """

    second: Tensor
    mean: Tensor
    weight: Tensor
    space: Space
    spread: int
    spans_blocks: bool
    biased: bool

    def columns(self, atom: Atom) -> NDArray[np.int64]:
        """Return the columns of each block that belong to each unit of `atom`: [blocks, units, columns]."""
        return unit_columns(self.space, atom, len(self.second), self.spread, self.spans_blocks)

    def merge_uneven_blocks(self, atom: Atom) -> Moments:
        """Return these moments as one block-diagonal block if units of `atom` differ in their number of columns per block.

        `columns` needs equal numbers in all blocks.
        """
        if len(self.second) == 1 or not self.spans_blocks:
            return self
        block_of = unit_positions(self.space, atom) // (self.space.size // len(self.second))
        counts = np.stack([(block_of == b).sum(1) for b in range(len(self.second))])
        if (counts == counts.flat[0]).all():
            return self
        second, weight = (torch.block_diag(*t)[None] for t in (self.second, self.weight))
        return replace(self, second=second, weight=weight, mean=self.mean.reshape(1, -1))

    @property
    def covariance(self) -> Tensor:
        """E[(x - E[x]) (x - E[x])^T], [blocks, d, d]: the part of the second moments that a bias cannot absorb."""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """Inner products of the terms of a sum without weights, such as queries by keys, or the values that a mean reduces.

    Attributes:
        inner: E[term_i . term_j], float64 [d, d].
        space: index space of the contracted axis.
        spread: number of adjacent columns per index.
    """

    inner: Tensor
    space: Space
    spread: int

    def columns(self, atom: Atom) -> NDArray[np.int64]:
        """Return the columns that belong to each unit of `atom`: [units, columns]."""
        result: NDArray[np.int64] = unit_columns(self.space, atom, 1, self.spread, False)[0]
        return result


def collect_moments(
    graph: Graph, data: Data, axes: Iterable[InputAxis], *, sites: int = 128, title: str = "moments"
) -> dict[InputAxis, Moments | InnerProducts]:
    """Return the moments of those of `axes` that are observed in one pass over the data.

    Args:
        graph: of the model, which stays as it is.
        data: calibration data.
        axes: input axes of consumers.
        sites: number of output positions per sample at which a convolution is sampled.
        title: of the pass, see `Data.stream`.

    Raises:
        PlanError: as `Data.stream`.
        TraceError: on this data the model takes another path than the traced one.
    """
    sums = Sums()
    wanted = list(dict.fromkeys(axes))

    def tap(axis: InputAxis) -> Tap:
        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            if axis.weight is not None:
                _add_moments(sums, axis, op, tensors, sites)
            else:
                _add_inner_products(sums, axis, op, tensors)

        return Tap(axis.op, read)

    tapped_pass(graph, data, [tap(axis) for axis in wanted], sums, f"{title} {sites}")
    return {axis: _normalized(graph, axis, sums) for axis in wanted if f"{axis.key} form" in sums}


def _add_moments(sums: Sums, axis: InputAxis, op: OpRecord, tensors: Sequence[Tensor], sites: int) -> None:
    """Add one batch to the moments of an axis that a weight contracts."""
    key, product = axis.key, unfold(axis, op, tensors, sites)
    for i, x in enumerate(product.x):
        wide = x.double()
        sums.plus(f"{key} {i} second", wide.mT @ wide)
        sums.plus(f"{key} {i} mean", wide.sum(0))
        sums.plus(f"{key} {i} count", len(wide))
    if f"{key} weight" not in sums:
        sums.keep(f"{key} weight", product.w)
        sums.keep(f"{key} form", torch.tensor([product.spread, product.spans_blocks]))


def _add_inner_products(sums: Sums, axis: InputAxis, op: OpRecord, tensors: Sequence[Tensor]) -> None:
    """Add one batch to the inner products of an axis that no weight contracts."""
    pair, spread = unfold_pair(axis, op, tensors), 1
    if pair is None:
        rows = axis.rows(tensors)
        rows = rows.abs() if rows.is_complex() else rows
        inner, count = torch.diag(rows.double().square().sum(1)), rows.shape[1]
    else:
        left, right, spread = pair
        left, right = left.double(), right.double()
        inner, count = ((left.mT @ left) * (right.mT @ right)).sum(0), left.shape[0] * left.shape[1]
    sums.plus(f"{axis.key} inner", inner)
    sums.plus(f"{axis.key} count", count)
    sums.keep(f"{axis.key} form", torch.tensor([spread, 0]))


def _normalized(graph: Graph, axis: InputAxis, sums: Mapping[str, Tensor]) -> Moments | InnerProducts:
    """Return the moments of an axis from its sums."""
    key, space = axis.key, axis.space(graph)
    spread, spans_blocks = (int(n) for n in sums[f"{key} form"])
    if axis.weight is None:
        return InnerProducts(sums[f"{key} inner"] / sums[f"{key} count"].cpu(), space, spread)
    weight = sums[f"{key} weight"]
    counts = [max(float(sums[f"{key} {i} count"]), 1.0) for i in range(len(weight))]
    second = torch.stack([sums[f"{key} {i} second"] / n for i, n in enumerate(counts)])
    mean = torch.stack([sums[f"{key} {i} mean"] / n for i, n in enumerate(counts)])
    op = graph.ops[axis.op]
    biased = op.name in ("addmm", "baddbmm") or (op.name in ("linear", "convolution", "_convolution") and len(op.arguments) > 2)
    return Moments(second, mean, weight, space, spread, bool(spans_blocks), biased)
