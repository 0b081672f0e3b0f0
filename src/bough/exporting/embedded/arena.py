"""Place the activations of a program in one static arena.

A tensor lives from the op that writes it first to the op that reads it last. Two that live at once lie apart, but for an
output over an input that dies with the op (see `overlap`). The planner places tensors one by one at the offset that makes the
arena grow least, in several orders, and keeps the smallest arena.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bough.exporting.embedded.overlap import Overlap, overlaps
from bough.exporting.embedded.program import Program

ALIGNMENT = 4  # bytes; kernels read words
WHOLE = 8  # the arena is a multiple of this many bytes
_TRIALS = 300


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets of tensors in bytes by `id(tensor)`, and the size of the arena."""

    offsets: Mapping[int, int]
    size: int


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes that are in use from op `first` to op `last`, both included."""

    size: int
    first: int
    last: int


Gaps = dict[tuple[int, int], Overlap]  # (output, input): how they may overlap


def lifetimes(program: Program) -> dict[int, Block]:
    """Return when each activation is in use, by `id(tensor)`, in the order in which they are first written."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, op in enumerate(program.ops):
        first.setdefault(id(op.output), i)
        for tensor in (*op.inputs, op.output):
            last[id(tensor)] = i
    return {id(t): Block(t.size, first[id(t)], last[id(t)]) for t in program.activations}


def plan_arena(program: Program) -> Arena:
    """Return offsets for all activations of a program; the same ones at every call."""
    blocks = lifetimes(program)
    gaps: Gaps = {}
    for i, op in enumerate(program.ops):
        for place, overlap in overlaps(op).items():
            source, target = op.inputs[place], op.output
            pair = (id(target), id(source))
            if pair[0] in blocks and pair[1] in blocks and blocks[pair[1]].last == i == blocks[pair[0]].first:
                gaps[pair] = overlap
    best: Arena | None = None
    bound = _lower_bound(program, blocks, gaps)
    for order in _orders(blocks):
        found = _place(blocks, gaps, order)
        if best is None or found.size < best.size:
            best = found
        if best.size <= bound:
            break
    return best or Arena({}, 0)


def _orders(blocks: Mapping[int, Block]) -> Iterator[list[int]]:
    """Yield orders in which to place tensors: by size, by time, and these shuffled a little."""
    keys = list(blocks)
    by_size = sorted(keys, key=lambda k: (-blocks[k].size, blocks[k].first))
    yield by_size
    yield keys
    yield keys[::-1]
    yield sorted(keys, key=lambda k: (blocks[k].first - blocks[k].last, -blocks[k].size))
    generator = random.Random(0)
    for trial in range(_TRIALS if len(keys) > 2 else 0):
        noise = 0.02 * (1 + trial % 30)
        if trial % 2:
            yield sorted(keys, key=lambda k: -blocks[k].size * generator.uniform(1 - noise, 1 + noise))
        else:
            yield sorted(keys, key=lambda k: blocks[k].first + generator.uniform(0, noise * len(keys)))


def _place(blocks: Mapping[int, Block], gaps: Gaps, order: Sequence[int]) -> Arena:
    offsets: dict[int, int] = {}
    size = 0
    for key in order:
        block = blocks[key]
        forbidden = [
            _forbidden(key, other, blocks, gaps, offsets[other])
            for other in offsets
            if blocks[other].first <= block.last and block.first <= blocks[other].last
        ]
        starts = {0, *(-(-high // ALIGNMENT) * ALIGNMENT for _, high in forbidden)}
        starts |= {low // ALIGNMENT * ALIGNMENT for low, _ in forbidden if low >= 0}
        possible = [s for s in starts if all(not low < s < high for low, high in forbidden)]
        offset = min(possible, key=lambda s: (max(size, s + block.size), s))
        offsets[key] = offset
        size = max(size, offset + block.size)
    return Arena(offsets, -(-size // WHOLE) * WHOLE)


def _forbidden(key: int, other: int, blocks: Mapping[int, Block], gaps: Gaps, at: int) -> tuple[int, int]:
    """Return the open interval of offsets that `key` must not have, with `other` placed at `at`."""
    size, there = blocks[key].size, blocks[other].size
    low, high = at - size, at + there
    if (overlap := gaps.get((key, other))) is not None:  # key is the output
        low = max(low, at - overlap.forward)
        high = high if overlap.backward is None else min(high, at + overlap.backward)
    elif (overlap := gaps.get((other, key))) is not None:  # key is the input
        high = min(high, at + overlap.forward)
        low = low if overlap.backward is None else max(low, at - overlap.backward)
    return low, high


def _lower_bound(program: Program, blocks: Mapping[int, Block], gaps: Gaps) -> int:
    """Return bytes that no placement can go below: at each op the tensors in use, an overlapped pair counted once."""
    bound = 0
    for i in range(len(program.ops)):
        live = [k for k, b in blocks.items() if b.first <= i <= b.last]
        free = [k for k in live if any(k == source and blocks[k].last == i for _, source in gaps)]
        total = sum(blocks[k].size for k in live) - sum(blocks[k].size for k in free)
        for k in free:
            target = next(t for t, s in gaps if s == k)
            total += max(0, blocks[k].size - blocks[target].size)
        bound = max(bound, total)
    return bound
