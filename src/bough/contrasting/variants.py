"""How the variants of a contrast are made: cut, sparse, and both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.calibration import Data
from bough.cutting.cut import plain_copy
from bough.errors import ComparisonError
from bough.graph import OpRecord
from bough.pipeline import prune
from bough.planning import Budget
from bough.sparsity import Sparsified, selected_weights, sparsify
from bough.tracing import trace
from bough.tracing.selection import Selection, as_names


@dataclass(frozen=True, slots=True)
class Made:
    """A variant: the model, and how it was made sparse if it was."""

    model: nn.Module
    sparse: Sparsified | None = None

    def plain(self) -> nn.Module:
        """Return the model as an ordinary module: its masks, if any, become zeros."""
        return self.model if self.sparse is None else self.sparse.remove()


@dataclass(frozen=True, slots=True)
class Variant:
    """The name of a variant, the share of parameters it keeps, and the function that makes it from the dense model."""

    name: str
    keep: float | None
    make: Callable[[], Made]


@dataclass(frozen=True, slots=True)
class Maker:
    """What all variants are made from."""

    model: nn.Module
    example_inputs: Any
    data: Data | None
    ignore: Selection
    round_to: int
    methods: Sequence[str]
    pattern: str

    def variants(self, keeps: Sequence[float]) -> Iterator[Variant]:
        """Yield the variants in the order in which they are measured.

        A pattern keeps a share of its own, so it has one row on the dense model, and rows on cut models for smaller shares.
        """
        best = self.methods[-1]
        for method in dict.fromkeys(("magnitude", best)):
            yield Variant(f"{self.pattern} {method}", None, lambda m=method: Made(*self._pattern(self.model, m)))  # type: ignore[misc]
        for keep in keeps:
            yield Variant("structured", keep, lambda k=keep: Made(self._cut(k)))  # type: ignore[misc]
            for method in self.methods:
                yield Variant(method, keep, lambda m=method, k=keep: Made(*self._sparse(m, k)))  # type: ignore[misc]
            share = keep / self._kept_by_pattern()
            if share < 1:
                name = f"structured, {self.pattern} {best}"
                yield Variant(name, keep, lambda s=share: Made(*self._pattern(self._cut(s), best)))  # type: ignore[misc]

    def dense(self) -> Made:
        """Return a copy of the dense model."""
        return Made(plain_copy(self.model))

    def _cut(self, keep: float) -> nn.Module:
        budget = Budget(params=int(keep * sum(p.numel() for p in self.model.parameters())))
        return prune(self.model, self.example_inputs, budget, data=self.data, ignore=self.ignore, round_to=self.round_to).model

    def _sparse(self, method: str, keep: float) -> tuple[nn.Module, Sparsified]:
        """Zero as many weights as makes all non-zeros together the share `keep` of the parameters."""
        total = sum(p.numel() for p in self.model.parameters())
        weights = sum(m.size for m in selected_weights(trace(self.model, self.example_inputs), self._ignored(), None, None)[0])
        sparsity = (1 - keep) * total / weights
        if sparsity >= 1:
            raise ComparisonError(f"keep={keep}: the parameters that stay dense are more than that share")
        allocation = "global" if method == "magnitude" else "uniform"
        sparse = sparsify(
            self.model, self.example_inputs, sparsity, method=method, allocation=allocation, data=self.data, ignore=self.ignore
        )
        return sparse.model, sparse

    def _pattern(self, model: nn.Module, method: str) -> tuple[nn.Module, Sparsified]:
        """Apply the pattern; names of `ignore` are those of the dense model, which a cut keeps."""
        sparse = sparsify(
            model, self.example_inputs, pattern=self.pattern, method=method, data=self.data, ignore=self.ignore, permute=True
        )
        return sparse.model, sparse

    def _kept_by_pattern(self) -> float:
        kept, of = map(int, self.pattern.split(":"))
        return kept / of

    def _ignored(self) -> tuple[str, ...]:
        return as_names(self.model, self.ignore, "ignore")


def nonzero_macs(model: nn.Module, example_inputs: Any) -> tuple[int, int, int]:
    """Return MACs, MACs whose weight is not zero, and peak memory, of a plain model."""
    graph = trace(model, example_inputs)
    cost, saved = graph.cost(), 0.0
    matrices, _ = selected_weights(graph, (), None, None)
    for matrix in matrices:
        values = matrix.gather(graph.tensor(matrix.name))
        zero = 1 - float(values.count_nonzero()) / matrix.size
        saved += zero * sum(_macs(graph.ops[axis.op]) for axis in matrix.axes)
    return cost.macs, round(cost.macs - saved), cost.peak_memory


def _macs(op: OpRecord) -> float:
    """Return the MACs of a recorded operator: the sum of products of the sizes of its spaces."""
    total = 0.0
    for spaces in op.macs:
        product = 1.0
        for space in spaces:
            product *= space.size
        total += product
    return total
