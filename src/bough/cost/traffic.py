"""Bytes that ops read and write."""

from __future__ import annotations

from collections.abc import Iterator

from bough.graph import Graph, OpRecord
from bough.spaces import Space

Axes = tuple[Space, ...]


def moving(graph: Graph) -> Iterator[tuple[OpRecord, int]]:
    """(op, bytes an element) of the ops that move memory: those that fill some, or write in place; views are free."""
    born = {s.born: s.itemsize for s in graph.storages}
    itemsize: dict[int, int] = {}  # by number of value
    for op in graph.ops:
        size = born.get(op.index) or itemsize.get(op.inputs[0] if op.inputs else -1, born.get(-1, 4))
        itemsize.update(dict.fromkeys(op.values, size))
        if op.results and (op.index in born or op.name.endswith("_")):
            yield op, size


def activations(op: OpRecord) -> Iterator[Axes]:
    """The axes of what an op reads and writes, the model's tensors aside."""
    yield from (axes for axes, state in zip(op.arguments, op.states, strict=True) if not state)
    yield from op.results


def weights(op: OpRecord) -> Iterator[Axes]:
    """The axes of the model's tensors that it reads."""
    yield from (axes for axes, state in zip(op.arguments, op.states, strict=True) if state)
