"""Reduction of elementwise saliency, and of statistics of input axes, to one score per unit of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration import InputAxis, consumer_inputs, observed_axes
from bough.graph import Graph, Group
from bough.importance.protocols import UnitScores
from bough.importance.weight_checks import check_finite
from bough.spaces import Space, coordinates, normal, unit_means, unit_sums
from bough.tracing.contractions import consumed

_CHUNK = 1 << 18  # elements at a time: 1 MB of float32, which fits into the processor's cache

Reduce = Callable[[Tensor, int], Tensor]
"""(tensor, dim) -> its saliency summed over all other dims: float [size of dim]."""


class Elementwise:
    """A `Reduce` of an elementwise saliency, computed for some rows at a time, so that little memory is needed.

    torch runs with one thread meanwhile: the operations are small, and threads that wait for each other take many times as long
    where other programs use the processor. So the result is the same for any number of threads, too.
    """

    def __init__(self, saliency: Callable[[Tensor], Tensor]) -> None:
        self._saliency = saliency

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the saliency summed over all dims but `dim`: [size of dim]."""
        return sums_along(self, tensor, (dim,))[dim]

    def rows(self, shape: Sequence[int]) -> int:
        """Return how many rows (indices of dim 0) of a tensor are taken at a time."""
        return max(1, _CHUNK * shape[0] // max(prod(shape), 1))

    def along(self, dims: Sequence[int], chunks: Iterable[Tensor]) -> dict[int, Tensor]:
        """Return the sums along each of several dims, {dim: [size of dim]}; the saliency is computed once.

        Args:
            dims: of the tensor.
            chunks: the tensor's rows in order, `rows` at a time; each may change when the next one is asked for.
        """
        sums: dict[int, list[Tensor]] = {dim: [] for dim in dims}
        with _one_thread():
            for chunk in chunks:
                values = self._saliency(chunk)
                for dim, found in sums.items():
                    found.append(sum_to_dim(values, dim))
            return {dim: torch.cat(found) if dim == 0 else torch.stack(found).sum(0) for dim, found in sums.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch run operations of this thread without others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def elementwise(saliency: Callable[[Tensor], Tensor]) -> Elementwise:
    """Return a `Reduce` from an elementwise saliency.

    Args:
        saliency: maps a tensor to one of the same shape.

    Example:
        >>> import torch
        >>> elementwise(torch.abs)(torch.tensor([[1.0, -2.0], [3.0, -4.0]]), 1)
        tensor([4., 6.])
    """
    return Elementwise(saliency)


def sums_along(reduce: Reduce, tensor: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
    """Return `reduce(tensor, dim)` for each of several dims."""
    if isinstance(reduce, Elementwise):
        return reduce.along(dims, tensor.split(reduce.rows(tensor.shape)))
    return {dim: reduce(tensor, dim) for dim in dims}


def sum_to_dim(values: Tensor, dim: int) -> Tensor:
    """Return the sum of `values` over all dims but `dim`, in new memory: [size of dim].

    Leading dims are summed first, which adds whole contiguous rows: torch is several times slower on all dims at once.
    """
    if values.dim() == 1:
        return values.clone()
    if dim:
        values = values.sum(tuple(range(dim)))
    return values.sum(tuple(range(1, values.dim()))) if values.dim() > 1 else values


@torch.no_grad()
def per_unit(
    graph: Graph,
    reduce: Reduce,
    *,
    inputs: bool,
    outputs: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    each: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> UnitScores:
    """Sum a saliency over the members of each group: {group: float64 [units]}.

    For groups whose units may differ for each unit of another group, the result also has
    {`Ragged.scores`: float64 [units of the other group, units]}, unless `each` is given.

    Args:
        graph: of the model.
        reduce: gives the saliency of a parameter along one dim.
        inputs: whether members that consume the units count (the weights of consumers).
        outputs: whether members that produce the units count.
        tensors: values to reduce in place of the parameters, by name; parameters without an entry do not count.
        each: applied to each member's sums per unit before they are added.

    Raises:
        PlanError: a sum is not finite because a parameter holds NaN or infinity.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> per_unit(bough.trace(net, torch.randn(1, 4)), elementwise(torch.ones_like), inputs=True)["0"].tolist()
        [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0]
    """
    totals = {g.atom: np.zeros(g.size) for g in graph.groups}
    ragged = _RaggedSums(graph)
    members = [m for m in group_members(graph, inputs=inputs, outputs=outputs) if tensors is None or m[0] in tensors]
    dims: dict[str, list[int]] = {}
    for name, dim in members:
        dims.setdefault(name, []).append(dim)
    reduced: dict[str, dict[int, Tensor]] = {}
    for name, dim in members:
        if name not in reduced:
            reduced[name] = _reduced(graph, reduce, name, dims[name], tensors)
        values = reduced[name].pop(dim).double().cpu().numpy()
        if tensors is None and not np.isfinite(values).all():
            check_finite(name, graph.tensor(name).detach())
        space = normal(graph.states[name].axes[dim])
        for atom in space.atoms:
            if atom in totals:
                sums = unit_sums(space, atom, values)
                totals[atom] += sums if each is None else each(sums)
        if each is None:
            ragged.add(space, values)
    return {**{g.name: totals[g.atom] for g in graph.groups}, **(ragged.totals if each is None else {})}


def _reduced(
    graph: Graph, reduce: Reduce, name: str, dims: Sequence[int], tensors: Mapping[str, Tensor] | None
) -> dict[int, Tensor]:  # fmt: skip
    """Return the saliency of a parameter, or of what stands in its place, along several dims."""
    if tensors is not None:
        return sums_along(reduce, tensors[name], dims)
    if graph.weights is not None:
        return graph.weights.reduce(name, dims, reduce)
    return sums_along(reduce, graph.tensor(name).detach(), dims)


def group_members(graph: Graph, *, inputs: bool, outputs: bool = True) -> list[tuple[str, int]]:
    """Return the (parameter, dim) pairs of all groups, each once.

    Args:
        graph: of the model.
        inputs: whether to include members that consume units.
        outputs: whether to include members that produce units.
    """
    consuming = consumed(graph)
    pairs = dict.fromkeys((m.name, m.dim) for g in graph.groups for m in g.members if graph.states[m.name].parameter)
    return [pair for pair in pairs if (inputs if pair in consuming else outputs)]


def mean_over_axes(graph: Graph, values: Mapping[InputAxis, NDArray[np.float64]]) -> UnitScores:
    """Return the mean of values per index over each unit's positions and over the observed input axes of its group.

    Args:
        graph: of the model.
        values: [size of the axis] for each observed axis.

    Raises:
        PlanError: no input axis of a group was observed.
    """
    return {
        group.name: np.mean([unit_means(axis.space(graph), group.atom, values[axis]) for axis in axes], axis=0)
        for group, axes in _observed(graph, values)
    }


def sum_over_axes(graph: Graph, values: Mapping[InputAxis, NDArray[np.float64]]) -> UnitScores:
    """Return the sum of values per index over each unit's positions and over the observed input axes of its group.

    Args and Raises: as `mean_over_axes`.
    """
    return {
        group.name: np.sum([unit_sums(axis.space(graph), group.atom, values[axis]) for axis in axes], axis=0)
        for group, axes in _observed(graph, values)
    }


def _observed(graph: Graph, values: Mapping[InputAxis, NDArray[np.float64]]) -> list[tuple[Group, list[InputAxis]]]:
    """Return each group with its observed input axes."""
    axes = consumer_inputs(graph)
    return [(group, observed_axes(group.name, axes[group.name], values)) for group in graph.groups]


class _RaggedSums:
    """Sums per unit of a group and unit of another group, for groups whose units may differ for each unit of the other."""

    def __init__(self, graph: Graph) -> None:
        atoms = {g.name: g.atom for g in graph.groups}
        pairs = [(atoms[r.group], atoms[r.over], r.scores) for r in graph.ragged if r.reason is None]
        self._over = {atom: (over, key) for atom, over, key in pairs}
        self.totals = {key: np.zeros((over.size, atom.size)) for atom, over, key in pairs}

    def add(self, space: Space, values: NDArray[np.float64]) -> None:
        """Add values [size of the space]."""
        for atom in space.atoms:
            if atom in self._over:
                over, key = self._over[atom]
                units, others = coordinates(space, atom)[0], coordinates(space, over)[0]  # each unit has one other
                belongs = units >= 0
                np.add.at(self.totals[key], (others[belongs], units[belongs]), values[belongs])
