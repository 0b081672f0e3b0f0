"""Criteria for whole layers: what does each of `graph.layers` change?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bough.calibration import Data, Reader, Sums, Tap, preserve_state, tapped
from bough.errors import PlanError
from bough.graph import Graph, Layer, OpRecord
from bough.importance.score import UnitScores
from bough.spaces import normal


@dataclass(frozen=True, slots=True)
class BlockInfluence:
    """How far a layer turns what it is given: I = 1 - E[cos(x_in, x_out)] over tokens or positions (ShortGPT; Men
    et al., 2024).

    Gives {list of layers: float64 [entries that can be left out]}, as `plan(keep={list: n})` reads, and {layer: float64 [1]}
    for layers that stand alone and are no such lists themselves.

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

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        if not graph.layers:
            raise PlanError(f"{type(graph.model).__name__} has no layers that can be left out")
        sums = Sums()
        taps = [t for layer in graph.layers for t in _taps(graph, layer, sums)]
        with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps):
            for batch in data.stream(graph, sums, "BlockInfluence"):
                data.run(graph, batch)
        found: dict[str, list[float]] = {x.container: [] for x in graph.layers if x.container is not None}
        lists = set(found)
        for layer in graph.layers:
            if layer.container is not None or layer.name not in lists:
                influence = 1 - float(sums[layer.name] / sums[f"{layer.name} count"])
                found.setdefault(layer.name if layer.container is None else layer.container, []).append(influence)
        return {name: np.array(values) for name, values in found.items()}


def _taps(graph: Graph, layer: Layer, sums: Sums) -> list[Tap]:
    """Keeps what enters the layer until it has left, then adds up the cosines."""
    entered: list[Tensor] = []
    dims = _hidden(graph, layer)

    def wide(x: Tensor) -> Tensor:
        return x.detach().double().movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)

    def leave(x: Tensor) -> None:
        cosines = torch.nn.functional.cosine_similarity(wide(entered.pop()), wide(x), dim=0)
        sums.plus(layer.name, cosines.sum())
        sums.plus(f"{layer.name} count", cosines.numel())

    passage = layer.passages[0]
    enter = _value(graph, passage.enters, lambda x: entered.append(x.detach().clone()))
    return [enter, _value(graph, passage.leaves, leave)]


def _hidden(graph: Graph, layer: Layer) -> tuple[int, ...]:
    """The dims of what passes through that parameters know: the width, not batch or positions."""
    known = {a for s in graph.states.values() if s.parameter for axis in s.axes for a in normal(axis).atoms}
    leaves = layer.passages[0].leaves
    axes = next(axes for op in graph.ops for n, axes in zip(op.values, op.results, strict=True) if n == leaves)
    return tuple(d for d, axis in enumerate(axes) if known.intersection(normal(axis).atoms)) or (len(axes) - 1,)


def _value(graph: Graph, number: int, show: Callable[[Tensor], None]) -> Tap:
    """A tap on the value `number`, where it is made, or first read where it is an input of the model."""
    for op in graph.ops:
        if number in op.values:
            return Tap(op.index, _only(op.values.index(number), show), results=True)
    op = next(op for op in graph.ops if number in op.inputs)
    return Tap(op.index, _only(op.inputs.index(number), show))


def _only(place: int, show: Callable[[Tensor], None]) -> Reader:
    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        show(tensors[place])

    return read
