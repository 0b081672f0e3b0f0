"""Op shapes: all that the time of an op depends on, with the widths that a plan can change as letters.

A shape is JSON text, so that a table of times can be measured on a machine without the model. `OpShape.key` of a linear
layer with 197 tokens is

    {"op": "linear", "shapes": [[1, 197, "a"], ["b", "a"], ["b"]], "held": [false, true, true], "options": [null, null, null]}

An axis that is no single width is a sum of products, such as "8*a+4". The number of groups of a convolution is the ratio
of two axes, {"ratio": ["a", 1]}; the normalized shape of a layer norm is a list of axes, {"sizes": ["a"]}. "held" says which
tensors are parameters or buffers of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from bough.graph import Graph, OpRecord
from bough.ops import spec
from bough.spaces import Atom, Space, Sum, normal

_TRANSPOSED, _GROUPS = 6, 8  # positions among the arguments of a convolution


@dataclass(frozen=True, eq=False, slots=True)
class OpShape:
    """The shape of an op as JSON (`key`), its name, and the space that each letter stands for."""

    key: str
    name: str
    letters: tuple[Space, ...]


def op_shapes(graph: Graph) -> Iterator[OpShape]:
    """Yield the shapes of all timed ops in order: ops with MACs, and common norms and activations."""
    free = {g.atom for g in graph.groups}
    for op in graph.ops:
        if is_timed(op):
            yield _shape(op, free)


def is_timed(op: OpRecord) -> bool:
    """Return whether an op is timed by itself; the latency of other ops comes from the bytes that they move."""
    return bool(op.macs) or spec(op.name.rstrip("_")).timed


@dataclass(frozen=True, slots=True)
class SizedOp:
    """An op at given widths.

    Attributes:
        name: ATen name.
        shapes: of its tensor arguments.
        owned: for each tensor argument, whether it is a parameter or buffer of the model.
        options: all arguments, with None in place of tensors.
    """

    name: str
    shapes: list[list[int]]
    owned: list[bool]
    options: list[Any]


def sized(key: str, widths: Sequence[int]) -> SizedOp:
    """Return the op of a key at given widths of its letters."""
    data, known = json.loads(key), dict(zip(ascii_lowercase, widths, strict=False))
    shapes = [[_size(axis, known) for axis in axes] for axes in data["shapes"]]
    options = data["options"]
    for i, option in enumerate(options):
        if isinstance(option, dict):
            ((kind, axes),) = option.items()
            found = [_size(axis, known) for axis in axes]
            options[i] = found[0] // found[1] if kind == "ratio" else found
    return SizedOp(data["op"], shapes, data["held"], options)


def _shape(op: OpRecord, free: set[Atom]) -> OpShape:
    convolution = op.name in ("convolution", "_convolution")
    axes = (*op.arguments, *(op.results if convolution else ()))
    letters = _independent([normal(s) for spaces in axes for s in spaces], free)

    def size(space: Space) -> int | str:
        return _expression(normal(space), letters, free)

    shapes = [[size(s) for s in spaces] for spaces in op.arguments]
    options = [_plain(o) for o in op.detail]
    if convolution:
        whole = op.results[0][1] if op.detail[_TRANSPOSED] else op.arguments[0][1]
        options[_GROUPS] = {"ratio": [size(whole), size(op.arguments[1][1])]}
    if op.name == "layer_norm":
        options[1] = {"sizes": [size(s) for s in op.arguments[0][-len(options[1]) :]]}
    data = {"op": op.name, "shapes": shapes, "held": [bool(s) for s in op.states], "options": options}
    return OpShape(json.dumps(data), op.name.rstrip("_"), tuple(letters))


def _independent(spaces: list[Space], free: set[Atom]) -> list[Space]:
    """Return the fewest spaces from which all sizes follow: spaces that share no group with another space, else the groups.

    A product with a fixed factor is replaced by its other factors, since not all of its sizes need be possible.
    """
    distinct: list[Space] = []
    for s in spaces:
        if free & set(s.atoms) and not any(s == d for d in distinct):
            distinct.append(s)
    result: list[Space] = []
    for s in distinct:
        own = free & set(s.atoms)
        alone = not any(own & set(d.atoms) for d in distinct if d is not s)
        alone = alone and (isinstance(s, Sum) or own == set(s.atoms))
        for new in [s] if alone else [a for a in s.atoms if a in free]:
            if not any(new == r for r in result):
                result.append(new)
    return result


def _expression(space: Space, letters: list[Space], free: set[Atom]) -> int | str:
    """Return the size of a space as a number, a letter, or a sum of products of both."""
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
