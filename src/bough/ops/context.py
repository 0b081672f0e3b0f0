"""What a rule is given, and what it gives back.

A rule is a function `(c: Context, call: OpCall, result) -> Typing | list[Typing]`: it unifies the spaces of the
arguments' axes as the op demands, and types the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from bough.graph import GroupKind
from bough.spaces import UNIT, Atom, Product, Space, Sum, freeze, is_frozen, normal, unify


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an axis is frozen: what happened, in which op, module and source line."""

    what: str
    op: str = ""
    module: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = ", ".join(x for x in (self.op, f"in {self.module}" if self.module else "", self.where) if x)
        return f"{self.what} ({place})" if place else self.what


KERNEL = Reason("kernel position")  # an axis of parameters that is data, not worth a line to the user


@dataclass(slots=True)
class Typing:
    """A tensor's axes. `null[i]`: where a unit of axis i is masked, all its values there are zero."""

    axes: tuple[Space, ...]
    null: tuple[bool, ...]
    weight: bool = False  # a parameter, or a view of one
    ranges: Space | None = None  # of integers that number the units of a space, as topk gives: that space
    counted: tuple[Space, ...] = ()  # of integers that depend on how many units these spaces have


class Op(Protocol):
    """The part of a call that rules read."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def argument(call: Op, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    return call.args[position] if len(call.args) > position else call.kwargs.get(name, default)


@dataclass
class Notes:
    """What the rules tell about one op besides types."""

    macs: list[tuple[Space, ...]] = field(default_factory=list)
    integers: dict[str, Space] = field(default_factory=dict)
    renormalized: list[Space] = field(default_factory=list)
    combined: list[Space] = field(default_factory=list)  # axes whose units the op adds up or compares with each other
    undefined: list[Space] = field(default_factory=list)  # axes along which a masked unit makes the op divide by zero
    narrower: list[tuple[Space, Space]] = field(default_factory=list)  # the first must stay smaller than the second
    identified: list[Space] = field(default_factory=list)  # spaces of which Python identifies a unit by its number
    counts: list[tuple[int, Space]] = field(default_factory=list)  # (position of an integer argument, what it counts)
    scale_of: Space | None = None


class Context:
    """Types of tensors, and what rules may do with them."""

    def __init__(self, typing_of: Callable[[Tensor], Typing], locate: Callable[[Op], tuple[str, str]]) -> None:
        self.of = typing_of
        self._locate = locate
        self.marks: list[tuple[GroupKind, Space]] = []
        self.consumed: list[Space] = []  # axes over which an op sums products
        self.multiples: list[tuple[Space, int]] = []
        self.minima: list[tuple[Space, int]] = []
        self.singled: list[tuple[Space, Reason]] = []  # axes of which an op takes a unit by its index, and that op
        self.notes = Notes()
        self.call: Op | None = None
        self.read: tuple[int, Space] | None = None  # a number that this op reads from a tensor whose values number a space
        self.last_read: tuple[int, Space] | None = None  # the same of the op before

    def start(self, call: Op) -> None:
        self.call = call
        self.notes = Notes()
        self.last_read, self.read = self.read, None

    @property
    def name(self) -> str:
        return self.call.name if self.call is not None else ""

    def reason(self, what: str) -> Reason:
        assert self.call is not None
        module, where = self._locate(self.call)
        return Reason(what, self.call.name, module, where)

    def unify(self, a: Space, b: Space) -> None:
        if a is not b:
            mixed = any(atom.reason is not None for s in (a, b) for atom in s.atoms)
            what = "mixed with data axes by a reshape" if mixed else "unaligned axes"
            unify(a, b, _Lazy(self, self.call, what, (a, b)))

    def freeze(self, space: Space, what: str) -> None:
        if not is_frozen(space):
            freeze(space, self.reason(what))

    def fresh(self, size: int) -> Space:
        return Atom(size) if size != 1 else UNIT

    def data(self, size: int, what: str | Reason = "data") -> Space:
        return Atom(size, what) if size != 1 else UNIT

    def empty(self, tensor: Tensor) -> tuple[Space, ...]:
        """Axes of a tensor that says nothing: data."""
        return tuple(self.data(n) for n in tensor.shape)

    def mark(self, kind: GroupKind, *spaces: Space) -> None:
        """Say what the units of `spaces` are; the first of the kinds in the order of `GroupKind` counts."""
        self.marks.extend((kind, s) for s in spaces)

    def consume(self, *spaces: Space) -> None:
        """The op sums over `spaces`: without such a reader, units are not known to matter."""
        self.consumed.extend(spaces)

    def multiple(self, space: Space, of: int) -> None:
        """The op runs only where `space` has a multiple of `of` units."""
        if of > 1:
            self.multiples.append((space, of))

    def at_least(self, space: Space, least: int) -> None:
        """The op runs, or gives more than a constant, only where `space` has so many units."""
        self.minima.append((space, least))

    def macs(self, *spaces: Space) -> None:
        self.notes.macs.append(spaces)

    def renormalizes(self, *spaces: Space) -> None:
        """The op computes a statistic over these axes: removing units changes it."""
        self.notes.combined.extend(spaces)
        self.notes.renormalized.extend(s for s in spaces if not is_frozen(s))

    def pick(self, axis: Space, index: Typing, what: str = "indexed by a tensor", table: Typing | None = None) -> None:
        """An integer tensor picks units of `axis`: they are the units its values number, where that is known.

        `table`: what is read so. A buffer lists what each unit stands for outside the model, unless it is what numbers them.
        """
        numbered = index.ranges
        listed = table is not None and table.weight and not any(table.null)
        if listed and numbered is not None and normal(axis) != normal(numbered):
            self.freeze(numbered, "a buffer lists what each of its units stands for")
        if numbered is None:
            self.freeze(axis, what)
        elif numbered.size > axis.size:
            self.unify(numbered, Sum((axis, self.data(numbered.size - axis.size))))
        elif numbered.size < axis.size:
            self.unify(axis, Sum((numbered, self.data(axis.size - numbered.size))))
        else:
            self.unify(axis, numbered)

    def contract(self, a: Space, b: Space, null: bool) -> None:
        """Sums products over `a` = `b`; exact where one side is zero for masked units."""
        self.unify(a, b)
        self.notes.combined.append(a)
        self.consume(a)
        if not null:
            self.renormalizes(a)


class _Lazy:
    """A reason that is worded only when someone reads it."""

    def __init__(self, context: Context, call: Op | None, what: str, spaces: tuple[Space, Space]) -> None:
        self.context, self.call, self.what, self.spaces = context, call, what, spaces

    def __str__(self) -> str:
        assert self.call is not None
        module, where = self.context._locate(self.call)
        a, b = map(_sizes, self.spaces)
        return str(Reason(f"{self.what}: {a} and {b}" if a != b else self.what, self.call.name, module, where))


def _sizes(space: Space) -> str:
    """How a space is made of its parts: "3 x 4", "6 + 2"."""
    space = normal(space)
    if isinstance(space, Sum):
        return " + ".join(map(_sizes, space.terms))
    return " x ".join(map(_sizes, space.factors)) if isinstance(space, Product) else str(space.size)


def same(c: Context, call: Any, result: Any) -> Typing:
    """The result has the axes of the first argument, whatever the values."""
    x = c.of(call.args[0])
    return Typing(x.axes, x.null, x.weight)
