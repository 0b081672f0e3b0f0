"""Integers that number the units of a space, as topk and argmax give them: where they go, and what may be done with them.

Where units are removed, those that stay are renumbered. An op that moves numbers, picks by them, or compares them with
each other goes on as before. One that computes with them in another way does not: the space they number is frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bough.ops.context import Context, Typing
from bough.ops.spec import base_name, rule, spec
from bough.spaces import Space, Sum, concat, is_frozen, normal

_READERS = frozenset(("item", "__int__", "__index__", "__float__", "__bool__", "__format__", "__repr__"))


def follow(c: Context, call: Any, operands: list[Typing], typed: list[Typing], results: list[Any]) -> None:
    """Says of the results which space they number, and freezes the spaces whose numbers the op computes with."""
    name = base_name(call.name)
    known = spec(name)
    if known.counts or any(t.counted for t in operands):
        _follow_counts(c, call, name, operands, typed, results)
    numbered = [t.ranges for t in operands if t.ranges is not None]
    if not numbered:
        return
    if known.index_at is not None:
        _freeze(c, _written(c, call, known.index_at, known.moves_numbers))
    one = all(normal(s) == normal(numbered[0]) for s in numbered)
    joined = name not in ("cat", "stack") or (one and len(numbered) == len(operands))
    if not joined or (name == "clamp" and not _within(call, numbered[0].size)):
        _freeze(c, numbered)
    elif known.moves_numbers and operands[0].ranges is not None:
        for i, (t, r) in enumerate(zip(typed, results, strict=True)):
            floats = r.is_floating_point() and name != "_to_copy"
            if t.ranges is None and not floats and (i == 0 or name not in ("sort", "max", "min")):
                typed[i] = replace(t, ranges=operands[0].ranges)
    elif known.orders and len(operands) == len(numbered) and one:
        for i, other in enumerate(call.args):
            if isinstance(other, (int, float)) and 0 <= other < numbered[0].size:
                _compared(c, i, other, numbered[0])
    elif not known.picks and not known.ignores_values:
        _freeze(c, numbered)


def _follow_counts(
    c: Context, call: Any, name: str, operands: list[Typing], typed: list[Typing], results: list[Any]
) -> None:  # fmt: skip
    """Note which results depend on how many units there are, and freeze the units if such a result is used as an index.

    Ends of segments compared with a position, and summed over the experts, number the expert that the position belongs to.
    """
    counted = tuple(dict.fromkeys(s for t in operands for s in t.counted))
    known = spec(name)
    at = known.index_at if known.index_at is not None else 0 if known.numbers_units else None
    index = () if at is None else call.args[at]
    for space in (s for t in _tensors(index) for s in c.of(t).counted):
        c.freeze(space, "how many of its units there are is used as an index")
    if known.counts:
        counted += tuple(c.notes.renormalized)
    for i, (t, r) in enumerate(zip(typed, results, strict=True)):
        if counted and not r.is_floating_point() and not r.is_complex():
            typed[i] = replace(t, counted=counted)


def _written(c: Context, call: Any, index: int, moved: bool) -> list[Space]:
    """Return the spaces whose numbers an op that picks takes for values; `moved`: it passes on those in its first argument."""
    values = [t for i, given in enumerate(call.args) if i != index and not (moved and i == 0) for t in _tensors(given)]
    return [s for s in (c.of(t).ranges for t in values) if s is not None]


def _tensors(given: Any) -> list[Any]:
    return [t for t in (given if isinstance(given, (tuple, list)) else (given,)) if hasattr(t, "dim")]


@rule("tolist", "numpy")
def _listed(c: Context, call: Any, result: Any) -> list[Typing]:
    """Values leave the tensors, one for each unit in order: Python may do anything with them."""
    x = c.of(call.args[0])
    _freeze(c, [] if x.ranges is None else [x.ranges])
    for axis in x.axes:
        c.freeze(axis, "the model's Python gets a value for each of its units, in order")
    return []


def read(c: Context, call: Any, given: Any) -> tuple[int, Space] | None:
    """A number leaves the tensors: what C++ reads may come back with the next op, to select a unit; Python may do anything."""
    numbered = c.of(call.args[0]).ranges
    if numbered is None:
        return None
    if getattr(call.caller, "__name__", "") in _READERS:
        _freeze(c, [numbered])
        return None
    return (given, numbered) if isinstance(given, int) else None


def _compared(c: Context, position: int, number: float, space: Space) -> None:
    """Numbers are compared with one: the place of a unit that stays, after what is counted before it, or that of another,
    which has to be given to Python again."""
    whole = normal(space)
    before: list[Space] = []
    for term in whole.terms if isinstance(whole, Sum) else (whole,):
        if number == sum(t.size for t in before) and is_frozen(term):
            c.notes.counts.append((position, concat(*before)))
            return
        before.append(term)
    c.notes.identified.append(space)


def _freeze(c: Context, spaces: list[Space]) -> None:
    for space in spaces:
        c.freeze(space, "the numbers of its units are computed with")


def _within(call: Any, size: int) -> bool:
    """Whether the bounds of a clamp leave the numbers of a space as they are."""
    low = call.args[1] if len(call.args) > 1 else call.kwargs.get("min")
    high = call.args[2] if len(call.args) > 2 else call.kwargs.get("max")
    plain = all(b is None or isinstance(b, (int, float)) for b in (low, high))
    return plain and (low is None or low <= 0) and (high is None or high >= size - 1)
