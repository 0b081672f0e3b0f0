"""The weights that can be sparse, as matrices: where each element of [blocks, inputs, outputs] is stored in its parameter.

A weight is found by its use, a product with an activation, so layers of any class are found: linear layers and convolutions,
packed projections of attention, raw parameters in an einsum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from bough.calibration import InputAxis, Tap, preserve_state, tapped, unfold
from bough.graph import Graph, OpRecord
from bough.recovery.refit import weight_uses


@dataclass(frozen=True, eq=False, slots=True)
class WeightMatrix:
    """A parameter, or a part of one, by which operators multiply activations.

    Attributes:
        name: of the parameter.
        axes: the input axes of the operators that read these elements.
        positions: int64 [blocks, inputs, outputs], the index of each element in the flattened parameter. Blocks share no
            input: groups of a convolution. Inputs of a convolution are channels x kernel positions.
        spread: number of adjacent inputs per index of the contracted axis, such as the kernel positions of a convolution.
        kernel: sizes of the dims that `spread` counts.
    """

    name: str
    axes: tuple[InputAxis, ...]
    positions: Tensor
    spread: int
    kernel: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.positions.numel()

    @property
    def channels(self) -> int:
        """Number of indices of the contracted axis per block."""
        return self.positions.shape[1] // self.spread

    def gather(self, values: Tensor) -> Tensor:
        """Return the elements of a tensor of the parameter's shape, [blocks, inputs, outputs]."""
        return values.detach().reshape(-1)[self.positions.to(values.device)]

    def scatter_(self, target: Tensor, values: Tensor) -> None:
        """Write [blocks, inputs, outputs] to a tensor of the parameter's shape, in place."""
        flat = target.detach().reshape(-1)
        flat[self.positions.to(target.device)] = values.to(target)
        target.detach().copy_(flat.view(target.shape))


def weight_matrices(graph: Graph) -> tuple[list[WeightMatrix], dict[str, str]]:
    """Return the weights that can be sparse, in the order of the run, and why other parameters of two dims or more stay dense.

    Args:
        graph: of the model, which runs once on the first call's example inputs and stays as it is.
    """
    found: dict[str, list[WeightMatrix]] = {}
    reasons: dict[str, str] = {}
    uses = dict(weight_uses(graph))
    observed = _observe(graph, [axis for _, axis in uses.values()])
    for index, (names, axis) in uses.items():
        if len(names) > 1:
            reasons.update(dict.fromkeys(names, f"the weight is computed from {len(names)} parameters"))
            continue
        (name,) = names
        matrix = _matrix(graph, name, axis, observed.get(index)) if name not in reasons else "known"
        if isinstance(matrix, str):
            reasons.setdefault(name, matrix)
        elif not _merge(found.setdefault(name, []), matrix, graph.tensor(name).numel()):
            reasons[name] = "several operators read overlapping parts of it"
    for name, parameter in graph.model.named_parameters():
        if parameter.dim() > 1 and name not in found:
            reasons.setdefault(name, "no product of an activation and this parameter is recorded (an embedding, a recurrence)")
    return [m for name, parts in found.items() if name not in reasons for m in parts], reasons


def by_parameter(matrices: Sequence[WeightMatrix]) -> dict[str, list[WeightMatrix]]:
    """Return the matrices of each parameter by its name."""
    grouped: dict[str, list[WeightMatrix]] = {}
    for matrix in matrices:
        grouped.setdefault(matrix.name, []).append(matrix)
    return grouped


def masks_from(graph: Graph, kept: Sequence[tuple[WeightMatrix, Tensor]]) -> dict[str, Tensor]:
    """Return masks of parameters from masks of their matrices, bool [blocks, inputs, outputs]; elements in none stay."""
    masks: dict[str, Tensor] = {}
    for matrix, keep in kept:
        parameter = graph.tensor(matrix.name)
        if matrix.name not in masks:
            masks[matrix.name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        matrix.scatter_(masks[matrix.name], keep)
    return masks


def _observe(graph: Graph, axes: Sequence[InputAxis]) -> Mapping[int, list[Tensor]]:
    """Return the arguments of the operators in one run on the example inputs."""
    observed: dict[int, list[Tensor]] = {}

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        observed[op.index] = [t.detach() for t in tensors]

    taps = [Tap(axis.op, read) for axis in axes]
    with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps) as model:
        graph.call(model)
    return observed


def _matrix(graph: Graph, name: str, axis: InputAxis, arguments: list[Tensor] | None) -> WeightMatrix | str:
    """Return the matrix that an operator reads, or why there is none."""
    if arguments is None:
        return "the example inputs do not reach it"
    assert axis.weight is not None
    parameter, weight = graph.tensor(name), arguments[axis.weight[0]]
    numbers = _numbers(parameter, weight)
    if numbers is None:
        return "the weight is computed from a parameter, and not a view of it (remove its parametrization first)"
    numbered = [numbers.double() if i == axis.weight[0] else t for i, t in enumerate(arguments)]
    product = unfold(axis, graph.ops[axis.op], numbered, 1)
    kernel = tuple(weight.shape[2:]) if prod(weight.shape[2:]) == product.spread else (product.spread,)
    return WeightMatrix(name, (axis,), product.w.long().cpu(), product.spread, kernel)


def _numbers(parameter: Tensor, weight: Tensor) -> Tensor | None:
    """Return the index in the flattened parameter of each element of a view of it; None if `weight` is no such view."""
    start = weight.storage_offset() - parameter.storage_offset()
    expanded = any(s == 0 and n > 1 for s, n in zip(weight.stride(), weight.shape, strict=True))
    same = weight.untyped_storage()._cdata == parameter.untyped_storage()._cdata
    if not same or expanded or start < 0 or start + _span(weight) > _span(parameter):
        return None
    stored = torch.full((_span(parameter),), -1, dtype=torch.int64, device=weight.device)
    order = torch.arange(parameter.numel(), device=weight.device).view(parameter.shape)
    stored.as_strided(parameter.shape, parameter.stride(), 0).copy_(order)
    return stored.as_strided(weight.shape, weight.stride(), start)


def _span(tensor: Tensor) -> int:
    """Return the number of elements of memory from the first to the last of a tensor."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _merge(parts: list[WeightMatrix], matrix: WeightMatrix, size: int) -> bool:
    """Add a matrix to those of its parameter; return whether it is one of them, or shares no element with them."""
    for i, part in enumerate(parts):
        if part.positions.shape == matrix.positions.shape and torch.equal(part.positions, matrix.positions):
            parts[i] = replace(part, axes=(*part.axes, *matrix.axes))
            return True
    counts = torch.zeros(size, dtype=torch.int32)
    for part in (*parts, matrix):
        counts.view(-1).index_add_(0, part.positions.flatten(), torch.ones(part.size, dtype=torch.int32))
    parts.append(matrix)
    return int(counts.max()) <= 1


def labels(matrices: Sequence[WeightMatrix]) -> Iterator[str]:
    """Yield a name for each matrix: that of its parameter, with a number if the parameter has several matrices."""
    several = {name: len(parts) > 1 for name, parts in by_parameter(matrices).items()}
    seen: dict[str, int] = {}
    for matrix in matrices:
        number = seen[matrix.name] = seen.get(matrix.name, -1) + 1
        yield f"{matrix.name}[{number}]" if several[matrix.name] else matrix.name
