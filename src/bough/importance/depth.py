"""Criteria for whole layers: how much each of `graph.layers` changes its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from bough.calibration import Data, Reader, Sums, Tap, tapped_pass
from bough.graph import Graph, Layer, OpRecord
from bough.importance.layer_lists import layer_lists
from bough.importance.protocols import UnitScores
from bough.spaces import normal


@dataclass(frozen=True, slots=True)
class BlockInfluence:
    """Block influence: I = 1 - E[cos(x_in, x_out)] of a layer's input and output, over tokens or positions.

    Called by `score`, it returns {list of layers: float64 [entries that can be left out]}, which `plan(keep={list: n})` reads,
    and {layer: float64 [1]} for layers that stand alone.

    Source: Men et al., 2024 (ShortGPT).

    Raises:
        PlanError: from its call: no layer can be left out, or as `Data.stream`.

    Example:
        >>> import torch, bough
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(*(Block() for _ in range(3))))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> scores = bough.score(graph, BlockInfluence(), [torch.randn(16, 4)])
        >>> scores["1"].shape
        (3,)
    """

    needs_data: ClassVar[bool] = True
    scores_layers: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the influence of all layers that can be left out."""
        lists, sums = layer_lists(graph), Sums()
        taps = [t for layer in graph.layers for t in _layer_taps(graph, layer, sums)]
        tapped_pass(graph, data, taps, sums, "BlockInfluence")
        return {
            name: np.array([1 - float(sums[x.name] / sums[f"{x.name} count"]) for x in layers])
            for name, layers in lists.items()
        }


def _layer_taps(graph: Graph, layer: Layer, sums: Sums) -> list[Tap]:
    """Return taps that store a layer's input and add the cosines of input and output to `sums`."""
    inputs: list[Tensor] = []
    dims = _feature_dims(graph, layer)

    def as_columns(x: Tensor) -> Tensor:
        return x.detach().double().movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)

    def add_cosines(output: Tensor) -> None:
        cosines = F.cosine_similarity(as_columns(inputs.pop(0)), as_columns(output), dim=0)
        sums.plus(layer.name, cosines.sum())
        sums.plus(f"{layer.name} count", cosines.numel())

    module_call = layer.module_calls[0]
    input_tap = _value_tap(graph, module_call.enters, lambda x: inputs.append(x.detach().clone()))
    return [input_tap, _value_tap(graph, module_call.leaves, add_cosines)]


def _feature_dims(graph: Graph, layer: Layer) -> tuple[int, ...]:
    """Return the dims of a layer's output that parameters have too: the width, and not batch or positions."""
    parameter_atoms = {a for s in graph.states.values() if s.parameter for axis in s.axes for a in normal(axis).atoms}
    output = layer.module_calls[0].leaves
    axes = next(axes for op in graph.ops for n, axes in zip(op.values, op.results, strict=True) if n == output)
    return tuple(d for d, axis in enumerate(axes) if parameter_atoms.intersection(normal(axis).atoms)) or (len(axes) - 1,)


def _value_tap(graph: Graph, value: int, observe: Callable[[Tensor], None]) -> Tap:
    """Return a tap on a value of the run: on the operator that computes it, or on the first reader of a model input."""
    for op in graph.ops:
        if value in op.values:
            return Tap(op.index, _tensor_reader(op.values.index(value), observe), results=True)
    op = next(op for op in graph.ops if value in op.inputs)
    return Tap(op.index, _tensor_reader(op.inputs.index(value), observe))


def _tensor_reader(index: int, observe: Callable[[Tensor], None]) -> Reader:
    """Return a reader that passes tensor number `index` to `observe`."""

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        observe(tensors[index])

    return read
