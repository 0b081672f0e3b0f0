"""What `search` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.errors import SearchError
from bough.graph import shown
from bough.planning import Plan
from bough.searching.goals import Goals
from bough.searching.makers import Maker
from bough.searching.plot import plot
from bough.searching.points import Point
from bough.searching.selection import Selected, explained, selected


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The candidates of a search and their Pareto front; prints as a table of the front.

    Attributes:
        points: all candidates that the study has evaluated, those that failed included, in the order in which they began.
        goals: objectives and bounds.
        dense: metrics of the dense model.
        original: costs of the dense model.
        maker: makes the models.
        lost: trials whose workers died; their candidates were evaluated by later trials.
        frozen: {group that no candidate cuts: reason}.
        notes: what the costs stand on.
        noise: {metric: standard error} as given, in place of those that the metrics' samples give.
    """

    points: tuple[Point, ...]
    goals: Goals
    dense: Mapping[str, float]
    original: Mapping[str, float]
    maker: Maker
    lost: int = 0
    frozen: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def selected(self) -> tuple[Selected, ...]:
        """The points of the front by the one-standard-error rule, each with the point that it stands for (see `selection`)."""
        return selected(self.points, self.goals, self.noise)

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that meet all bounds and that no other such point dominates, the best by the first objective first.

        Of points that differ by less than one standard error, the one whose outputs are closest to the dense model's counts.
        """
        return tuple(s.point for s in self.selected)

    @property
    def best(self) -> Point:
        """The point of the front that is best by the first objective, by the one-standard-error rule.

        Raises:
            SearchError: no candidate meets the bounds on metrics.
        """
        front = self.front
        if not front:
            failed = next((p.error for p in self.points if p.error), None)
            why = f"the first failure: {failed}" if failed else self._closest()
            raise SearchError(f"none of {len(self.points)} candidates meets the bounds; {why}")
        return front[0]

    def _closest(self) -> str:
        """Say by how much the candidate that comes closest to its bounds misses them."""
        closest = min(self.points, key=lambda p: max(p.violations.values(), default=0.0))
        missed = "; ".join(f"{name} by {100 * v:.1f} %" for name, v in closest.violations.items() if v > 0)
        return f"the closest misses {missed}: raise the budget or trials, or relax the bounds"

    def plan(self, point: Point) -> Plan:
        """Return the plan of a point.

        Raises:
            SearchError: the models were not made by plans, but by a maker of your own.
        """
        check_arguments(SearchResult.plan, locals())
        maker: Any = self.maker
        if not hasattr(maker, "plan"):
            raise SearchError("these models were made by make=..., not by plans: use model(point)")
        found: Plan = maker.plan(point.counts, point.left_out)
        return found

    def model(self, point: Point) -> nn.Module:
        """Make the model of a point again, as it was evaluated."""
        check_arguments(SearchResult.model, locals())
        return self.maker(point.counts, point.left_out)

    def to_dict(self) -> dict[str, Any]:
        chosen = self.selected
        numbers, stand_for = [s.point.number for s in chosen], [s.instead_of.number for s in chosen]
        return {
            **self.goals.to_dict(), "dense": dict(self.dense), "original": dict(self.original), "front": numbers,
            "instead_of": stand_for, "rule": explained(chosen, self.goals, list(self.dense)),
            "points": [p.to_dict() for p in self.points], "lost": self.lost, "frozen": dict(self.frozen or {}),
            "notes": list(self.notes),
        }  # fmt: skip

    def plot(self, path: str | Path, against: str | None = None) -> None:
        """Draw the first objective of all points against a cost, and the front, as a PNG; see `bough.searching.plot`."""
        check_arguments(SearchResult.plot, locals())
        plot(Path(path), self.points, self.front, self.goals, self.dense, against)

    def __str__(self) -> str:
        return "\n".join([*table(self.front, self.goals, self.dense, self.original), *self.remarks()])

    __repr__ = __str__

    def remarks(self) -> list[str]:
        """Return what is to be said besides the front: failures, bounds that were missed, and what the costs stand on."""
        failed = [p for p in self.points if p.error]
        unmet = sum(p.error is None and not p.good for p in self.points)
        chosen = self.selected
        lines = [f"{len(self.points)} candidates evaluated, {len(chosen)} on the front"]
        lines += explained(chosen, self.goals, list(self.dense))
        if failed:
            lines.append(f"{len(failed)} failed, such as by: {failed[0].error}")
        if unmet:
            lines.append(f"{unmet} miss a bound on a metric or on a measured cost")
        if self.lost:
            lines.append(f"{self.lost} trials of workers that ended early were run again")
        return [*lines, *self.notes, *(f"not cut: {name}: {why}" for name, why in (self.frozen or {}).items())]


def table(
    front: Sequence[Point], goals: Goals, dense: Mapping[str, float], original: Mapping[str, float], most: int | None = None
) -> list[str]:
    """Return the lines of a table of points: metrics, and costs as shares of the dense model; at most so many points."""
    metrics = list(dense)
    costs = [c for c in original if c in goals.directions or c in ("params", "macs", "peak_memory", "latency")]
    measured = list(dict.fromkeys(name for p in front for name in p.measured))
    extra = ["divergence"] * any(p.divergence is not None for p in front) + [f"measured {name}" for name in measured]
    rows = [["point", *metrics, *(f"{c} kept" for c in costs), *extra, "from"]]
    rows.append(["dense", *(f"{dense[m]:.4g}" for m in metrics), *("100.0%" for _ in costs), *("" for _ in extra), ""])
    for p in front[:most]:
        kept = (f"{p.cost[c] / original[c]:.1%}" if original[c] else "" for c in costs)
        rows.append([str(p.number), *(f"{p.metrics[m]:.4g}" for m in metrics), *kept, *_extra(p, extra), p.origin])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _extra(point: Point, names: Sequence[str]) -> list[str]:
    """Return what is known of a point besides metrics and predicted costs, as text."""
    known = {f"measured {name}": shown(name, value) for name, value in point.measured.items()}
    if point.divergence is not None:
        known["divergence"] = f"{point.divergence:.4g}"
    return [known.get(name, "") for name in names]
