"""The front of a search by the one-standard-error rule: among near-equal candidates a measure of less noise decides.

The highest metric of many candidates on few samples is the luckiest one. So each point of the Pareto front stands for all
points whose objectives are worse than its own by at most one standard error of these (costs are exact), and gives its place to
the one whose outputs diverge least from the dense model's. Divergence needs no labels and compares all outputs, so it has less
noise than an accuracy. Breiman et al. choose the simplest tree; candidates of a search meet the same budget: none is simplest.

Source: Breiman et al., 1984, Classification and Regression Trees, section 3.4.3 (the 1 SE rule).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from bough.searching.goals import Goals
from bough.searching.pareto import pareto
from bough.searching.points import Point


@dataclass(frozen=True, slots=True)
class Selected:
    """A point of the front.

    Attributes:
        point: the one that is chosen.
        instead_of: the point of the Pareto front by the measured objectives whose place it takes; itself where it is that one.
        near: number of points whose objectives are within one standard error of those of `instead_of`, that point included.
        errors: {objective: standard error of `instead_of`}, of those that have one.
    """

    point: Point
    instead_of: Point
    near: int
    errors: Mapping[str, float]


def selected(points: Sequence[Point], goals: Goals, noise: Mapping[str, float]) -> tuple[Selected, ...]:
    """Return the front, in the order of the first objective of the points that stand there by the measured objectives.

    Args:
        points: of a search; those that failed or miss a bound are left out.
        goals: objectives.
        noise: {metric: standard error}, in place of the one that the metric's samples give.

    Example:
        >>> found = [(84.0, 0.3), (83.0, 0.1), (75.0, 0.0)]  # metric, divergence
        >>> points = [Point(i, "", {}, values=(a,), divergence=d) for i, (a, d) in enumerate(found)]
        >>> [s] = selected(points, Goals({"accuracy": "max"}), {"accuracy": 2.0})
        >>> s.point.number, s.instead_of.number, s.near
        (1, 0, 2)
    """
    good = sorted((p for p in points if p.good), key=_divergence)
    losses = [goals.losses(p.values) for p in good]
    found: dict[int, Selected] = {}
    for i in sorted(pareto(losses), key=lambda i: losses[i]):
        known = {**good[i].errors, **noise}
        highest = [loss + known.get(name, 0.0) for name, loss in zip(goals.directions, losses[i], strict=True)]
        near = [j for j, those in enumerate(losses) if all(x <= limit for x, limit in zip(those, highest, strict=True))]
        best = min([i, *near], key=lambda j: _divergence(good[j]))
        errors = {name: known[name] for name in goals.directions if name in known}
        found.setdefault(best, Selected(good[best], good[i], len(near), errors))
    return tuple(found.values())


def explained(front: Sequence[Selected], goals: Goals, metrics: Collection[str]) -> list[str]:
    """Return by which rule the points of a front were chosen, as lines; none where all objectives are exact costs.

    Args:
        front: of `selected`.
        goals: objectives.
        metrics: names that `evaluate` gives.
    """
    noisy = [name for name in goals.directions if name in metrics]
    if not noisy or not front:
        return []
    unknown = [name for name in noisy if not any(name in s.errors for s in front)]
    lines = [
        f"{name} counts as exact: its standard error is unknown, unless evaluate gives one value per sample or noise= is given"
        for name in unknown
    ]
    lines += [_line(s) for s in front if s.point is not s.instead_of]
    if not lines and len(front) == 1:
        lines = [_undisputed(front[0])]
    return lines


def _line(chosen: Selected) -> str:
    """Return why a point has the place of another."""
    point, other = chosen.point, chosen.instead_of
    compared = ", ".join(
        f"{name} {point.metrics[name]:.4g} against {other.metrics[name]:.4g} +- {error:.2g}"
        for name, error in chosen.errors.items()
    )
    return (
        f"one-standard-error rule: point {point.number} in place of {other.number} ({compared}), because its outputs "
        f"diverge least among {chosen.near} points within one standard error"
    )


def _undisputed(chosen: Selected) -> str:
    """Return why a point that is the best as measured was not replaced."""
    number, others = chosen.point.number, chosen.near - 1
    if others and chosen.point.divergence is None:
        return (
            f"{others} more points are within one standard error of point {number}: give data, and divergence tells them apart"
        )
    within = (
        f"none of {others} others within one standard error diverges less"
        if others
        else "no other is within one standard error"
    )
    return f"one-standard-error rule: point {number} is the best as measured, and {within}"


def _divergence(point: Point) -> float:
    return inf if point.divergence is None else point.divergence
