"""Tensors that the C export for microcontrollers needs besides those that the run in PyTorch makes.

The export stores a part of a tensor (slice, split, chunk) and an expansion as tensors of their own, where PyTorch has views; it
spreads the input of a strided transposed convolution with zeros, and writes out the padding that an average counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bough.graph import Graph, OpRecord, Storage, numel
from bough.spaces import Atom, Space


def copied(graph: Graph) -> list[Storage]:
    """Return the further tensors of an export, with the ops during which they are in use."""
    filled = {s.born for s in graph.storages}
    last: dict[int, int] = {}  # by the number of a copied value: the last op that reads it or a view of it
    copies: dict[int, tuple[OpRecord, tuple[Space, ...]]] = {}
    viewed: dict[int, int] = {}  # by the number of a value: the copied value whose memory it has
    found = []
    for op in graph.ops:
        last.update((viewed[v], op.index) for v in op.inputs if v in viewed)
        found += [Storage(axes, 1, op.index, op.index) for axes in _before_a_kernel(op)]
        if op.index in filled or not op.inputs or op.inputs[0] < 0:
            continue
        for value, axes in zip(op.values, op.results, strict=True):
            if numel(axes) != numel(op.arguments[0]):
                copies[value], viewed[value], last[value] = (op, axes), value, op.index
            elif op.inputs[0] in viewed:
                viewed[value] = viewed[op.inputs[0]]
    return found + [Storage(axes, 1, op.index, last[value]) for value, (op, axes) in copies.items()]


def _before_a_kernel(op: OpRecord) -> Iterable[tuple[Space, ...]]:
    """Yield the axes of an input that is copied between zeros before the kernel runs."""
    if op.name in ("convolution", "_convolution") and op.detail[6] and any(step != 1 for step in op.detail[3]):
        yield _resized(op, [(size - 1) * step + 1 for size, step in _spatial(op, op.detail[3])])
    if op.name in ("avg_pool1d", "avg_pool2d") and len(op.detail) > 3:
        counts_padding = len(op.detail) < 6 or op.detail[5]
        padding = (op.detail[3],) if isinstance(op.detail[3], int) else op.detail[3]
        if counts_padding and any(padding):
            yield _resized(op, [size + 2 * pad for size, pad in _spatial(op, padding)])


def _spatial(op: OpRecord, options: Sequence[int]) -> Iterable[tuple[int, int]]:
    sizes = [axis.size for axis in op.arguments[0][2:]]
    return zip(sizes, options if len(options) == len(sizes) else [options[-1]] * len(sizes), strict=True)


def _resized(op: OpRecord, sizes: Iterable[int]) -> tuple[Space, ...]:
    return (*op.arguments[0][:2], *map(Atom, sizes))
