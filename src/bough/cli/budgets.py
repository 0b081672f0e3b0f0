"""Budgets as they are written on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from bough.errors import BudgetError
from bough.planning import Budget


def budget_of(given: Sequence[str]) -> Budget:
    """A budget of bounds such as "macs=50%" or "size=256KiB", several in one text with commas between.

    Raises:
        BudgetError: one that can not be read.

    Example:
        >>> budget_of(["macs=50%", "size=256KiB"]).macs
        '50%'
    """
    given = [part for text in given for part in text.split(",")]
    pairs = [b.partition("=") for b in given]
    for (name, sign, value), text in zip(pairs, given, strict=True):
        if not sign or not value or name not in Budget.__dataclass_fields__:
            fields = ", ".join(Budget.__dataclass_fields__)
            raise BudgetError(f"--budget {text!r}: write NAME=BOUND with a name of {fields}")
    names = [name for name, _, _ in pairs]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise BudgetError(f"{twice} is bounded twice, in {', '.join(given)}: give one bound for it")
    return Budget(**{name: value for name, _, value in pairs})
