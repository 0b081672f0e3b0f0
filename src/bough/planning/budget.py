"""Upper bounds on what remains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bough.arguments import check_fields
from bough.cost import Cost, EnergyModel, Prices
from bough.cost.flash import FLASH_PRECISION
from bough.cost.precision import precision as precision_of
from bough.errors import BudgetError
from bough.latency import LatencyTable

_SI = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_IEC = {"KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "\u00b5": 1e-6, "\u03bc": 1e-6, "n": 1e-9}  # the micro sign, and the Greek letter
_BASE = {"params": "", "macs": "MAC", "size": "B", "peak_memory": "B", "latency": "s", "energy": "J", "flash": "B"}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[A-Za-z\u00b5\u03bc]*)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may remain after pruning: each field an upper bound, several at once are all met.

    A field is a number in its unit (parameters, MACs, bytes, seconds, joules) or a string: "50%" of the original model,
    "1.2 GMAC", "2.5 M", "256 KiB", "3 ms", "2 mJ". Percentages above 100 and unknown units are errors.

    Bytes are of the model as it is, or where `precision` is given ("int8", see `PRECISIONS`) as it will be stored and run:
    `size` with weights at that precision, a float32 scale per output channel, biases and norms in 4 bytes; `peak_memory` with
    activations at that precision, integers (indices, masks) at their own width. `energy` is of that precision, too.
    Percentages are then of the original model at that precision. `latency` needs a `LatencyTable`, see `plan`. `flash` is the
    constants that the C export for microcontrollers writes (weights, biases, multipliers, shifts, tables), which are int8: with
    another bound in bytes or joules beside it, `precision="int8"` has to be given.

    Raises:
        BudgetError: a value that can not be read, an unknown unit, a percentage above 100, no bound at all, or flash at
            another precision than int8.

    Example:
        >>> Budget(macs="50%", size="256 KiB").limits(Cost(1000, 200, 4000, 0, 0))
        {'macs': 100.0, 'size': 262144.0}
    """

    params: float | str | None = None
    macs: float | str | None = None
    size: float | str | None = None
    peak_memory: float | str | None = None
    latency: float | str | None = None
    energy: float | str | None = None
    precision: str | None = None
    flash: float | str | None = None

    def __post_init__(self) -> None:
        if not self._bounds():
            raise BudgetError(f"Budget() bounds nothing: give at least one of {', '.join(_BASE)}")
        for field, value in self._bounds().items():
            parse(field, value, 1.0)
        check_fields(self)
        if self.precision is not None:
            precision_of(self.precision)
        if self.flash is not None:
            self._check_flash()

    def limits(self, original: Cost) -> dict[str, float]:
        """The bounds as numbers per field of `Cost`, for a model of cost `original`."""
        costs = original.to_dict()
        found = {}
        for field, value in self._bounds().items():
            of = "stored" if field == "size" and self.precision else field
            if of not in costs and isinstance(value, str) and value.strip().endswith("%"):
                raise BudgetError(
                    f"{field}={value!r} is a share of what the original does not say: give a cost with its {of!r}"
                )
            found[of] = parse(field, value, float(costs.get(of, 0.0)))
        return found

    def _check_flash(self) -> None:
        others = [k for k in ("size", "peak_memory", "energy") if getattr(self, k) is not None]
        if self.precision == FLASH_PRECISION or (self.precision is None and not others):
            return
        given = f"precision={self.precision!r} is given" if self.precision else f"{others[0]} would be counted as the model is"
        raise BudgetError(
            f"flash={self.flash!r} bounds the constants of the int8 export for microcontrollers, but {given}: "
            f"give precision={FLASH_PRECISION!r}"
        )

    def _bounds(self) -> dict[str, float | str]:
        return {k: getattr(self, k) for k in _BASE if getattr(self, k) is not None}


class LeastOfTied(dict[str, int]):
    """Units kept by group, of which tied groups take the least share: bough's own searches move groups one by one."""


Keep = float | Mapping[str, float]  # a share of every group, or {group, pattern or list of layers: units or share to keep}
Goal = Budget | Keep


def priced(goal: Goal, table: LatencyTable | None, energy: EnergyModel | None) -> Prices:
    """What the costs have to tell for a goal.

    Raises:
        BudgetError: a budget of latency without a table.
    """
    if not isinstance(goal, Budget):
        return Prices(None, table, energy)
    if goal.latency is not None and table is None:
        raise BudgetError(
            f"latency={goal.latency!r} needs a table of times: give table=bough.LatencyTable.measure(graph), or one that was "
            "measured elsewhere"
        )
    if goal.energy is not None and energy is None:
        energy = EnergyModel.of(goal.precision or "float32")
    return Prices(goal.precision, table, energy, goal.flash is not None)


def parse(field: str, value: float | str, original: float) -> float:
    """A bound as a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not value > 0:
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
    base = _BASE[field]
    if field in ("latency", "energy"):
        if (unit == "" or unit.endswith(base)) and unit.removesuffix(base) in _SMALL:
            return _SMALL[unit.removesuffix(base)]
        raise BudgetError(f"{field}={value!r}: unknown unit {unit!r}; write '50%' or {_example(field)}")
    text = unit.upper()
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
    known = {"macs": "'1.2 GMAC'", "params": "'2.5 M'", "latency": "'3 ms'", "energy": "'2 mJ'"}
    return known.get(field, "'256 KiB'")
