"""Shares kept after each step of an iterated cut: functions `(target, steps) -> shares`, and budgets made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral

from bough.arguments import check_arguments
from bough.cost import Cost
from bough.errors import BudgetError
from bough.planning import Budget

Schedule = Callable[[float, int], list[float]]
"""(share kept at the end, number of steps) -> share kept after each step; descending, and exactly the target at the end."""


def geometric(target: float, steps: int) -> list[float]:
    """Return shares with a constant ratio: kept_t = target^(t / T).

    Args:
        target: share kept at the end, above 0 and at most 1.
        steps: T, at least 1.

    Raises:
        BudgetError: a target outside (0, 1], or no step.

    Example:
        >>> geometric(0.25, 2)
        [0.5, 0.25]
    """
    check_arguments(geometric, locals())
    return _shares(target, steps, lambda progress: target**progress)


def linear(target: float, steps: int) -> list[float]:
    """Return shares with a constant difference: kept_t = 1 - (1 - target) t / T.

    Args:
        target: the share that is kept after the last step, in (0, 1).
        steps: their number T; one share is returned for each.

    Raises:
        PlanError: the target or the number of steps is out of range.

    Example:
        >>> linear(0.5, 2)
        [0.75, 0.5]
    """
    check_arguments(linear, locals())
    return _shares(target, steps, lambda progress: 1 - (1 - target) * progress)


def cubic(target: float, steps: int) -> list[float]:
    """Return shares that fall fast at first and slowly at the end: removed_t = (1 - target) (1 - (1 - t / T)^3).

    Args:
        target: the share that is kept after the last step, in (0, 1).
        steps: their number T; one share is returned for each.

    Raises:
        PlanError: the target or the number of steps is out of range.

    Source: Zhu and Gupta, 2017 (automated gradual pruning).

    Example:
        >>> cubic(0.5, 2)
        [0.5625, 0.5]
    """
    check_arguments(cubic, locals())
    return _shares(target, steps, lambda progress: 1 - (1 - target) * (1 - (1 - progress) ** 3))


def budgets(budget: Budget, original: Cost, steps: int, schedule: Schedule = geometric) -> list[Budget]:
    """Return one budget per step, in absolute numbers, from the original model's cost down to `budget`.

    A percentage is of `original`, however much was cut before. A bound that the original meets is the same in all steps.

    Args:
        budget: for the last step.
        original: cost of the original model. For bounds on size at a precision, energy and latency it must have these, as
            `Plan.original` of a plan to this budget does.
        steps: number of budgets.
        schedule: gives the shares.

    Raises:
        ArgumentError: an argument of another type.
        BudgetError: no step, a schedule with other than `steps` shares in (0, 1], or an original that lacks a cost.

    Example:
        >>> [b.macs for b in budgets(Budget(macs="25%"), Cost(100, 1000, 400, 0, 0), 2)]
        [500.0, 250.0]
    """
    check_arguments(budgets, locals())
    if not isinstance(steps, Integral) or steps < 1:
        raise BudgetError(f"steps={steps!r}: must be a whole number, at least 1")
    bounds: list[dict[str, float]] = [{} for _ in range(steps)]
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
    return [replace(budget, **bound) for bound in bounds]  # type: ignore[arg-type]


def _shares(target: float, steps: int, kept: Callable[[float], float]) -> list[float]:
    """Return kept(t / steps) for t = 1 .. steps - 1, and the target exactly at the end."""
    if not 0 < target <= 1 or steps < 1:
        raise BudgetError(f"target={target}, steps={steps}: the share kept must be above 0 and at most 1, and steps at least 1")
    return [*(kept(t / steps) for t in range(1, steps)), target]
