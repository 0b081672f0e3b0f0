"""Second moments of what consumers read: all that least squares needs, from one streaming pass.

Memory is the square of each consumer's input width, whatever the data's length. Refit and the reconstruction criteria
stand on this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.graph import Graph, OpRecord
from bough.importance.data import Data, Sums
from bough.importance.readings import Reading
from bough.importance.reduce import positions
from bough.importance.unfold import columns, factors, unfold
from bough.spaces import Atom, Space
from bough.tracing.taps import Tap, tapped, undisturbed

TINY = torch.finfo(torch.float64).tiny ** 0.5


def rounding(second: Tensor) -> Tensor:
    """Of E[x x^T] [blocks, d, d]: a variance [blocks, 1, 1] below which what is left of it once means are subtracted may be
    rounding alone. Whoever divides by a covariance adds it to the diagonal."""
    return 1e-12 * second.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a consumer y = x w: E[x x^T] [blocks, d, d], E[x] [blocks, d] and w [blocks, d, outputs], all float64.

    `biased`: a bias is added, so means can be moved into it.
    """

    second: Tensor
    mean: Tensor
    weight: Tensor
    space: Space
    spread: int
    whole: bool
    biased: bool

    def columns(self, atom: Atom) -> NDArray[np.int64]:
        """[blocks, units, columns]: the columns of each block that belong to each unit of `atom`."""
        return columns(self.space, atom, len(self.second), self.spread, self.whole)

    def even(self, atom: Atom) -> Moments:
        """The same, as one block of all where units have more columns in one block than in another: then `columns` can tell
        them."""
        if len(self.second) == 1 or not self.whole:
            return self
        per_block = positions(self.space, atom) // (self.space.size // len(self.second))
        counts = np.stack([(per_block == b).sum(1) for b in range(len(self.second))])
        if (counts == counts.flat[0]).all():
            return self
        second, weight = (torch.block_diag(*t)[None] for t in (self.second, self.weight))
        return replace(self, second=second, weight=weight, mean=self.mean.reshape(1, -1))

    @property
    def covariance(self) -> Tensor:
        """E[(x - E[x]) (x - E[x])^T]: the moments of what a bias can not make up for."""
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True, slots=True)
class Products:
    """Of a sum of terms that no weight reads: E[term_i . term_j] [d, d]: queries by keys, or what a mean takes in."""

    inner: Tensor
    space: Space
    spread: int

    def columns(self, atom: Atom) -> NDArray[np.int64]:
        """[units, columns]: the columns that belong to each unit of `atom`."""
        result: NDArray[np.int64] = columns(self.space, atom, 1, self.spread, False)[0]
        return result


def moments(
    graph: Graph, data: Data, wanted: Iterable[Reading], *, sites: int = 128, title: str = "moments"
) -> dict[Reading, Moments | Products]:
    """The moments of those of some readings that occur; of a convolution at `sites` output positions of each sample."""
    sums = Sums()
    places = list(dict.fromkeys(wanted))

    def tap(reading: Reading) -> Tap:
        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            if reading.weight is not None:
                _add(sums, reading, op, tensors, sites)
            else:
                _add_products(sums, reading, op, tensors)

        return Tap(reading.op, read)

    with torch.no_grad(), undisturbed(graph.model), tapped(graph, [tap(r) for r in places]):
        for batch in data.stream(graph, sums, f"{title} {sites}"):
            data.run(graph, batch)
    return {r: _made(graph, r, sums) for r in places if f"{r.key} form" in sums}


def _add(sums: Sums, reading: Reading, op: OpRecord, tensors: Sequence[Tensor], sites: int) -> None:
    key, unfolded = reading.key, unfold(reading, op, tensors, sites)
    for i, x in enumerate(unfolded.x):
        wide = x.double()
        sums.plus(f"{key} {i} second", wide.mT @ wide)
        sums.plus(f"{key} {i} mean", wide.sum(0))
        sums.plus(f"{key} {i} count", len(wide))
    if f"{key} weight" not in sums:
        sums.plus(f"{key} weight", unfolded.w)
        sums.plus(f"{key} form", torch.tensor([unfolded.spread, unfolded.whole]))


def _add_products(sums: Sums, reading: Reading, op: OpRecord, tensors: Sequence[Tensor]) -> None:
    pair, spread = factors(reading, op, tensors), 1
    if pair is None:
        rows = reading.rows(tensors)
        rows = rows.abs() if rows.is_complex() else rows
        inner, count = torch.diag(rows.double().square().sum(1)), rows.shape[1]
    else:
        left, right, spread = pair
        left, right = left.double(), right.double()
        inner, count = ((left.mT @ left) * (right.mT @ right)).sum(0), left.shape[0] * left.shape[1]
    sums.plus(f"{reading.key} inner", inner)
    sums.plus(f"{reading.key} count", count)
    if f"{reading.key} form" not in sums:
        sums.plus(f"{reading.key} form", torch.tensor([spread, 0]))


def _made(graph: Graph, reading: Reading, sums: Mapping[str, Tensor]) -> Moments | Products:
    key, space = reading.key, reading.space(graph)
    spread, whole = (int(n) for n in sums[f"{key} form"])
    if reading.weight is None:
        return Products(sums[f"{key} inner"] / sums[f"{key} count"].cpu(), space, spread)
    weight = sums[f"{key} weight"]
    counts = [max(float(sums[f"{key} {i} count"]), 1.0) for i in range(len(weight))]
    second = torch.stack([sums[f"{key} {i} second"] / n for i, n in enumerate(counts)])
    mean = torch.stack([sums[f"{key} {i} mean"] / n for i, n in enumerate(counts)])
    op = graph.ops[reading.op]
    biased = op.name in ("addmm", "baddbmm") or (op.name in ("linear", "convolution", "_convolution") and len(op.arguments) > 2)
    return Moments(second, mean, weight, space, spread, bool(whole), biased)
