"""Names of what is compared: the same in every process, short enough for a table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeAlias, TypeVar

from bough.errors import ComparisonError
from bough.planning import Budget

_LONGEST = 60

One = TypeVar("One")
Many: TypeAlias = One | Iterable[One] | Mapping[str, One]
"""One thing, several, or several by names that the user gives."""


def named(value: Any) -> str:
    """A string as it is, a function's name, a dataclass with the fields that are not at their defaults.

    Example:
        >>> from bough.importance import Magnitude, Taylor
        >>> named("l2"), named(Magnitude(p=1)), named(Magnitude(p=2)), named(named)
        ('l2', 'Magnitude(p=1)', 'Magnitude()', 'named')
    """
    if isinstance(value, str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        values = [(f, getattr(value, f.name)) for f in fields(value)]
        given = [f"{f.name}={_text(x)}" for f, x in values if not _is_default(f, x)]
        return _short(value, f"{type(value).__name__}({', '.join(given)})")
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else _short(value, re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)))


def budget_name(budget: Budget) -> str:
    """Its bounds.

    Example:
        >>> budget_name(Budget(macs="50%", size="8 MiB"))
        'macs=50%,size=8 MiB'
    """
    bounds = {f.name: getattr(budget, f.name) for f in fields(budget)}
    return ",".join(f"{name}={value}" for name, value in bounds.items() if value is not None)


def listed(given: Any) -> list[Any]:
    """Several things, or one alone, as a list."""
    return [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)


def by_name(what: str, given: Any, name: Callable[[Any], str] = named) -> dict[str, Any]:
    """The given things (or one alone) by their names: the keys of a mapping, else what `name` makes of each.

    Raises:
        ComparisonError: there are none, or two that the table could not tell apart.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else [(name(item), item) for item in listed(given)]
    found: dict[str, Any] = {}
    for title, item in pairs:
        if not isinstance(title, str):
            raise ComparisonError(f"{what}={{{title!r}: ...}}: the names in the table are strings")
        if title in found:
            raise ComparisonError(f"two {what} are called {title!r}: leave one out, or name them: {what}={{name: ...}}")
        found[title] = item
    if not found:
        raise ComparisonError(f"compare needs at least one of {what}")
    return found


def _is_default(f: Field[Any], value: Any) -> bool:
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    try:
        return bool(value == default)
    except (ValueError, RuntimeError):  # arrays and tensors of several elements are no yes or no
        return False


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, str) else named(value)


def _short(value: Any, text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{type(value).__name__}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
