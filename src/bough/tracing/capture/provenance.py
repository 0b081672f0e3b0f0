"""Integers that remember where they came from.

While a model is traced, the integers its modules hold, and those read from tensor shapes, are `TracedInt`s: plain
ints to everyone who looks, with an expression over attributes and axes that survives arithmetic. Where one arrives as
an argument that an axis gives the meaning of, the two form an `Equation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bough.spaces import Atom, Space, count

Path = tuple[str, ...]


def key_of(path: Path) -> str:
    """Return a path as one string, as plans hold it: "module:attribute:key".

    Example:
        >>> key_of(("blocks.0", "config", "heads")), key_of(("a:b", "heads"))
        ('blocks.0:config:heads', 'a%3Ab:heads')
    """
    return ":".join(part.replace("%", "%25").replace(":", "%3A") for part in path)


def path_of(key: str) -> Path:
    """Return the path that `key_of` made a string of."""
    return tuple(part.replace("%3A", ":").replace("%25", "%") for part in key.split(":"))


@dataclass(frozen=True, eq=False, slots=True)
class Attribute:
    """An integer that a module holds, at `path`: module name, then attribute names and container keys."""

    path: Path
    value: int


@dataclass(frozen=True, eq=False, slots=True)
class AxisSize:
    """The size of a tensor's axis."""

    space: Space


@dataclass(frozen=True, eq=False, slots=True)
class Operation:
    """`left op right`, with op one of + - * //."""

    op: str
    left: Expression
    right: Expression


Expression = int | Attribute | AxisSize | Operation

_COMPUTE: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
}


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """The Python at `where` computes `expression` as the size of `space`; soft ones were only compared, not used."""

    expression: Expression
    space: Space
    where: str


def expression_of(value: Any) -> Expression | None:
    """The expression behind an int: itself where it has none (a literal, or one computed out of sight)."""
    return value.expression if isinstance(value, TracedInt) else None


def _operator(op: str, swap: bool = False) -> Callable[[Any, Any], Any]:
    compute = _COMPUTE[op]

    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            plain = int.__index__(self)
            return compute(other, plain) if swap else compute(plain, other)
        a, b = int.__index__(self), int.__index__(other)
        value = compute(b, a) if swap else compute(a, b)
        there: Expression = other.expression if isinstance(other, TracedInt) else other
        left, right = (there, self.expression) if swap else (self.expression, there)
        return TracedInt(value, Operation(op, left, right))

    return method


_comparisons: list[list[tuple[Expression, Expression]]] = []


@contextmanager
def comparisons() -> Iterator[list[tuple[Expression, Expression]]]:
    """Collects the pairs of traced integers that the model's Python finds equal: what it asserts of its widths."""
    found: list[tuple[Expression, Expression]] = []
    _comparisons.append(found)
    try:
        yield found
    finally:
        _comparisons.remove(found)


class TracedInt(int):
    """An int with the expression that gave it."""

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> TracedInt:
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and isinstance(other, TracedInt) and _comparisons:
            _comparisons[-1].append((self.expression, other.expression))
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    __add__, __radd__ = _operator("+"), _operator("+", swap=True)
    __sub__, __rsub__ = _operator("-"), _operator("-", swap=True)
    __mul__, __rmul__ = _operator("*"), _operator("*", swap=True)
    __floordiv__, __rfloordiv__ = _operator("//"), _operator("//", swap=True)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__index__(self),)

    def __copy__(self) -> TracedInt:
        return self

    def __deepcopy__(self, memo: object) -> int:
        return int.__index__(self)


def evaluate(expression: Expression, attributes: Mapping[Path, int], kept: Mapping[Atom, Any]) -> Any:
    """The value of an expression when attributes and atoms' counts are as given (as traced where absent)."""
    if isinstance(expression, int):
        return int.__index__(expression)
    if isinstance(expression, Attribute):
        return attributes.get(expression.path, expression.value)
    if isinstance(expression, AxisSize):
        return count(expression.space, kept)
    left, right = (evaluate(e, attributes, kept) for e in (expression.left, expression.right))
    return _COMPUTE[expression.op](left, right) if expression.op != "//" or right else 0


def attributes_in(expression: Expression) -> list[Attribute]:
    """The attributes that an expression reads."""
    if isinstance(expression, Attribute):
        return [expression]
    if isinstance(expression, Operation):
        return attributes_in(expression.left) + attributes_in(expression.right)
    return []


def spaces_in(expression: Expression) -> list[Space]:
    """The axes' spaces that an expression reads."""
    if isinstance(expression, AxisSize):
        return [expression.space]
    if isinstance(expression, Operation):
        return spaces_in(expression.left) + spaces_in(expression.right)
    return []


def renamed(expression: Expression, path: Path, to: Path) -> Expression:
    """Return the expression with the attribute at `to` in place of the one at `path`."""
    if isinstance(expression, Attribute) and expression.path == path:
        return Attribute(to, expression.value)
    if isinstance(expression, Operation):
        return Operation(expression.op, renamed(expression.left, path, to), renamed(expression.right, path, to))
    return expression


def invert(
    expression: Expression, target: int, path: Path, attributes: Mapping[Path, int], kept: Mapping[Atom, int]
) -> int | None:
    """The value of the attribute at `path` (which occurs once) for which `expression` gives `target`."""
    while not isinstance(expression, Attribute):
        assert isinstance(expression, Operation)
        on_left = any(a.path == path for a in attributes_in(expression.left))
        inside, other = (expression.left, expression.right) if on_left else (expression.right, expression.left)
        known = evaluate(other, attributes, kept)
        match expression.op, on_left:
            case "+", _:
                target = target - known
            case "-", True:
                target = target + known
            case "-", False:
                target = known - target
            case "*", _:
                if not known or target % known:
                    return None
                target = target // known
            case "//", True:
                target = target * known
            case _:
                if not target or known % target:
                    return None
                target = known // target
        expression = inside
    return target
