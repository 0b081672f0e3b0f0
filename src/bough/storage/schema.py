"""Check JSON data against a schema, and say in one sentence which field is wrong and what it must be.

A schema is a function `check(value, place)` that returns the value, converted where it must be, or raises `Invalid`.
The functions below make such checks; they nest.

Example:
    >>> check = record({"name": text, "sizes": items(whole(1))}, {"note": nullable(text)})
    >>> check({"name": "a", "sizes": [3]}, "")
    {'name': 'a', 'sizes': [3]}
    >>> check({"name": "a", "sizes": [3, True]}, "")
    Traceback (most recent call last):
    ...
    bough.storage.schema.Invalid: sizes[1] is true, and must be a whole number, at least 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from operator import lt
from typing import Any

Check = Callable[[Any, str], Any]

_SHOWN = 60


class Invalid(ValueError):
    """Data that does not fit its schema; the message is one sentence without a full stop."""


def read_json(content: str | bytes) -> Any:
    """Return the data of a JSON text.

    Raises:
        Invalid: the text is not UTF-8 or not JSON, nests too deep, names a field twice or has a number that is not finite.
    """
    if not isinstance(content, (str, bytes)):
        raise Invalid(f"a {type(content).__name__} was given where JSON text is expected")
    try:
        return json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Invalid(f"it is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise Invalid("it is not valid JSON (brackets nest too deep)") from None
    except UnicodeDecodeError:
        raise Invalid("it is not text in UTF-8") from None
    except Invalid:
        raise
    except ValueError:
        raise Invalid("it has a number with too many digits") from None


def expected(value: Any, place: str, what: str) -> Invalid:
    """Return the error for a value that is not `what`."""
    return Invalid(f"{place or 'the whole'} is {shown(value)}, and must be {what}")


def text(value: Any, place: str) -> str:
    """Check for a string."""
    if not isinstance(value, str):
        raise expected(value, place, "text")
    return value


def flag(value: Any, place: str) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise expected(value, place, "true or false")
    return value


def number(value: Any, place: str) -> int | float:
    """Check for a finite number."""
    try:
        finite = type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what floats reach
        finite = False
    if not finite:
        raise expected(value, place, "a finite number")
    return value  # type: ignore[no-any-return]


def whole(lowest: int = 0, below: int | None = None) -> Check:
    """Check for a whole number, at least `lowest` and below `below`."""
    what = f"a whole number, at least {lowest}" + ("" if below is None else f" and below {below}")

    def check(value: Any, place: str) -> int:
        if type(value) is not int or value < lowest or (below is not None and value >= below):
            raise expected(value, place, what)
        return value

    return check


def nullable(check: Check) -> Check:
    """Check for null, or what `check` takes."""
    return lambda value, place: None if value is None else check(value, place)


def one_of(*values: Any) -> Check:
    """Check for one of some values."""
    what = " or ".join(json.dumps(v) for v in values)

    def check(value: Any, place: str) -> Any:
        if not any(type(value) is type(v) and value == v for v in values):
            raise expected(value, place, what)
        return value

    return check


def items(check: Check) -> Check:
    """Check for a list whose every item passes `check`."""

    def checked(value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise expected(value, place, "a list")
        return [check(v, f"{place}[{i}]") for i, v in enumerate(value)]

    return checked


def row(*checks: Check) -> Check:
    """Check for a list of as many items as there are checks, one for each; returns a tuple."""

    def checked(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(checks):
            raise expected(value, place, f"a list of {len(checks)} values")
        return tuple(check(v, f"{place}[{i}]") for i, (check, v) in enumerate(zip(checks, value, strict=True)))

    return checked


def table(check: Check, key: Callable[[str, str], Any] = text) -> Check:
    """Check for an object with any names, each of which passes `key`, whose every value passes `check`."""

    def checked(value: Any, place: str) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise expected(value, place, "an object")
        return {key(k, place): check(v, f"{place}[{json.dumps(k)}]") for k, v in value.items()}

    return checked


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Check for an object with these fields and no others; optional fields may be absent."""
    known = {**required, **(optional or {})}

    def checked(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise expected(value, place, "an object")
        inside = f"{place}." if place else ""
        missing = next((name for name in required if name not in value), None)
        if missing is not None:
            raise Invalid(f"{inside}{missing} is missing")
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            raise Invalid(f"{inside}{unknown} is not a known field")
        return {name: known[name](v, f"{inside}{name}") for name, v in value.items()}

    return checked


def index_list(value: Any, place: str) -> list[int]:
    """Check for indices: whole numbers, none negative, ascending, none twice, at least one."""
    problem = index_problem(value)
    if problem is not None:
        raise Invalid(f"{place} {problem}")
    return list(value)


def index_problem(value: Any, size: int | None = None) -> str | None:
    """Say what is wrong with a list of indices into `size` items; None where nothing is."""
    if not isinstance(value, (list, tuple)) or not value:
        return f"is {shown(value)}, and must be a list of indices"
    if set(map(type, value)) != {int}:
        wrong = next(i for i in value if type(i) is not int)
        return f"has the index {shown(wrong)}: indices are whole numbers"
    if not all(map(lt, value, value[1:])):
        before, after = next(p for p in pairwise(value) if p[0] >= p[1])
        return f"has the index {after} twice" if before == after else f"has the index {after} after {before}: indices ascend"
    if value[0] < 0 or (size is not None and value[-1] >= size):
        wrong = value[0] if value[0] < 0 else value[-1]
        return f"has the index {wrong}, which is out of range" + ("" if size is None else f" (0 to {size - 1})")
    return None


def shown(value: Any) -> str:
    """Return a value as JSON has it, shortened, for messages."""
    try:
        said = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        said = f"a {type(value).__name__}"
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise Invalid(f"it has the field {next(n for n in names if names.count(n) > 1)!r} twice")
    return made


def _no_constant(name: str) -> Any:
    raise Invalid(f"it has the number {name}, which is not finite")
