"""Ops by what their time depends on: the name, the options, the shapes, with the widths that a plan can change as letters.

Written as JSON, so that a table of times can be made from it on a machine that has no model: `OpShape.key` of a linear
layer with 197 tokens is

    {"op": "linear", "shapes": [[1, 197, "a"], ["b", "a"], ["b"]], "held": [false, true, true], "options": [null, null, null]}

An axis that depends on widths in another way than being one is a sum of products, such as "8*a+4".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from bough.graph import Graph, OpRecord
from bough.spaces import Atom, Space, normal

_GROUPS = 8  # the place of `groups` among the arguments of a convolution: it follows from the shapes


@dataclass(frozen=True, eq=False, slots=True)
class OpShape:
    """The form of an op, and the space that each letter of it stands for."""

    key: str
    letters: tuple[Space, ...]


def op_shapes(graph: Graph) -> Iterator[OpShape]:
    """Of each op that multiplies and accumulates, in order."""
    free = {g.atom for g in graph.groups}
    for op in graph.ops:
        if op.macs:
            yield _shape(op, free)


def sizes_at(key: str, widths: Mapping[str, int]) -> list[list[int]]:
    """The shapes of the tensors of an op at some widths."""
    return [[_size(axis, widths) for axis in axes] for axes in json.loads(key)["shapes"]]


def _shape(op: OpRecord, free: set[Atom]) -> OpShape:
    letters = _independent([normal(s) for axes in op.arguments for s in axes], free)
    shapes = [[_expression(normal(s), letters, free) for s in axes] for axes in op.arguments]
    options = [_plain(o) for o in op.detail]
    if op.name in ("convolution", "_convolution"):
        options[_GROUPS] = "groups"
    data = {"op": op.name, "shapes": shapes, "held": [bool(s) for s in op.states], "options": options}
    return OpShape(json.dumps(data), tuple(letters))


def _independent(spaces: list[Space], free: set[Atom]) -> list[Space]:
    """The fewest spaces by which all can be told: those that share no group with another one, else the groups."""
    distinct: list[Space] = []
    for s in spaces:
        if free & set(s.atoms) and not any(s == d for d in distinct):
            distinct.append(s)
    result: list[Space] = []
    for s in distinct:
        own = free & set(s.atoms)
        alone = not any(own & set(d.atoms) for d in distinct if d is not s)
        for new in [s] if alone else [a for a in s.atoms if a in free]:
            if not any(new == r for r in result):
                result.append(new)
    return result


def _expression(space: Space, letters: list[Space], free: set[Atom]) -> int | str:
    """The size of a space: a number, a letter, or a sum of products of both."""
    for letter, known in zip(ascii_lowercase, letters, strict=False):
        if space == known:
            return letter
    if not free & set(space.atoms):
        return space.size
    terms = getattr(space, "terms", None)
    if terms is not None:
        return "+".join(str(_expression(t, letters, free)) for t in terms)
    return "*".join(str(_expression(f, letters, free)) for f in space.factors)  # type: ignore[union-attr]


def _size(axis: int | str, widths: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    total = 0
    for term in axis.split("+"):
        product = 1
        for factor in term.split("*"):
            product *= widths[factor] if factor in widths else int(factor)
        total += product
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    return int(value) if isinstance(value, int) else float(value) if isinstance(value, float) else None
