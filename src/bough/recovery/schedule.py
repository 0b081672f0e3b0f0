"""How much remains after each step of an iterated cut: plain functions `(target, steps) -> shares kept`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any

from bough.arguments import check_arguments
from bough.cost import Cost
from bough.errors import BudgetError
from bough.planning import Budget

Schedule = Callable[[float, int], list[float]]
"""(share kept at the end, number of steps) -> share kept after each step; falls, and ends exactly at the target."""


def geometric(target: float, steps: int) -> list[float]:
    """Each step keeps the same share of what the one before left: kept_t = target^(t / T).

    Raises:
        BudgetError: a target outside (0, 1], or no step.

    Example:
        >>> geometric(0.25, 2)
        [0.5, 0.25]
    """
    check_arguments(geometric, locals())
    return _ending(target, steps, lambda done: target**done)


def linear(target: float, steps: int) -> list[float]:
    """Each step removes as much as every other: kept_t = 1 - (1 - target) t / T.

    Example:
        >>> linear(0.5, 2)
        [0.75, 0.5]
    """
    check_arguments(linear, locals())
    return _ending(target, steps, lambda done: 1 - (1 - target) * done)


def cubic(target: float, steps: int) -> list[float]:
    """Much at first, little at the end (AGP, Zhu and Gupta, 2017): removed_t = (1 - target) (1 - (1 - t / T)^3).

    Example:
        >>> cubic(0.5, 2)
        [0.5625, 0.5]
    """
    check_arguments(cubic, locals())
    return _ending(target, steps, lambda done: 1 - (1 - target) * (1 - (1 - done) ** 3))


def budgets(budget: Budget, original: Cost, steps: int, schedule: Schedule = geometric) -> list[Budget]:
    """One budget per step, in absolute numbers: each bound goes from the original model's cost to what `budget` asks.

    A percentage is of `original`, however much was cut already; a bound that the original meets is the same in all steps.
    Bounds of size at a precision, energy and latency take an original that says what they are, as `Plan.original` of a plan to
    that budget does.

    Raises:
        BudgetError: no step, a schedule of other shares, or an original that does not say what a bound is of.

    Example:
        >>> [b.macs for b in budgets(Budget(macs="25%"), Cost(100, 1000, 400, 0, 0), 2)]
        [500.0, 250.0]
    """
    check_arguments(budgets, locals())
    if not isinstance(steps, Integral) or steps < 1:
        raise BudgetError(f"steps={steps!r}: must be a whole number, at least 1")
    bounds: list[dict[str, Any]] = [{} for _ in range(steps)]
    costs = original.to_dict()
    for field, limit in budget.limits(original).items():
        if field not in costs:
            raise BudgetError(f"the original's cost says no {field!r}: take that of a plan to this budget, plan.original")
        whole = float(costs[field])
        shares = schedule(limit / whole, steps) if limit < whole else []
        if shares and (len(shares) != steps or not all(0 < s <= 1 for s in shares)):
            raise BudgetError(f"the schedule gives {shares} for {steps} steps: one share for each, above 0 and at most 1")
        for step, bound in enumerate(bounds):
            bound["size" if field == "stored" else field] = limit if step == steps - 1 or not shares else whole * shares[step]
    return [replace(budget, **bound) for bound in bounds]


def _ending(target: float, steps: int, kept: Callable[[float], float]) -> list[float]:
    if not 0 < target <= 1 or steps < 1:
        raise BudgetError(f"target={target}, steps={steps}: the share kept must be above 0 and at most 1, and steps at least 1")
    return [*(kept(t / steps) for t in range(1, steps)), target]
