"""Upper bounds on what remains."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from bough.cost import Cost
from bough.errors import BudgetError

_SI = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_IEC = {"KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
_BASE = {"params": "", "macs": "MAC", "size": "B", "peak_memory": "B"}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[A-Za-z]*)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may remain after pruning: each field an upper bound, several at once are all met.

    A field is a number in its unit (parameters, MACs, bytes) or a string: "50%" of the original model, "1.2 GMAC",
    "2.5 M", "256 KiB". Percentages above 100 and unknown units are errors.

    Raises:
        BudgetError: a value that can not be read, an unknown unit, a percentage above 100, or no bound at all.

    Example:
        >>> Budget(macs="50%", size="256 KiB").limits(Cost(1000, 200, 4000, 0, 0))
        {'macs': 100.0, 'size': 262144.0}
    """

    params: float | str | None = None
    macs: float | str | None = None
    size: float | str | None = None
    peak_memory: float | str | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise BudgetError("Budget() bounds nothing: give at least one of params, macs, size, peak_memory")
        for f in fields(self):
            if getattr(self, f.name) is not None:
                parse(f.name, getattr(self, f.name), 1.0)

    def limits(self, original: Cost) -> dict[str, float]:
        """The bounds as numbers, for a model of cost `original`."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: parse(k, v, float(getattr(original, k))) for k, v in given.items() if v is not None}


def parse(field: str, value: float | str, original: float) -> float:
    """A bound as a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value <= 0:
            raise BudgetError(f"{field}={value!r} leaves nothing: a budget says what remains and must be above 0")
        return float(value)
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise BudgetError(f"{field}={value!r} is no budget: write a number, or a string such as '50%' or {_example(field)}")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if number > 100:
            raise BudgetError(f"{field}={value!r}: a budget says what remains, and can not be above 100%")
        result = original * number / 100
    else:
        result = number * _factor(field, unit, str(value))
    if number <= 0:
        raise BudgetError(f"{field}={value!r} leaves nothing: a budget says what remains and must be above 0")
    return result


def _factor(field: str, unit: str, value: str) -> float:
    text, base = unit.upper(), _BASE[field]
    for name in (f"{base}S", base):
        if base and text.endswith(name):
            text = text[: -len(name)]
            break
    if text in _SI:
        return _SI[text]
    if text in _IEC and base == "B":
        return _IEC[text]
    raise BudgetError(f"{field}={value!r}: unknown unit {unit!r}; write '50%' or {_example(field)}")


def _example(field: str) -> str:
    return {"macs": "'1.2 GMAC'", "params": "'2.5 M'"}.get(field, "'256 KiB'")
