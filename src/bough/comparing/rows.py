"""What a comparison is made of: a row per model that was evaluated, a line per rows that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

DENSE = "dense"

Key = tuple[str, str, str, int | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One model that was evaluated, or the error that kept it from being.

    Attributes:
        criterion, allocation, budget: by name; the dense model's are "dense", "" and "".
        seed: None where nothing is drawn.
        metrics: what `evaluate` gave, by name; empty where it failed.
        cost, kept: what remains by the plan, in numbers and as shares of the dense model, per field of `Cost`.
        seconds: spent on "score" (shared by the criterion's rows of one seed), "plan", "refit" and "evaluate".
        notes: what the plan could not cut and stands on, and what was not refitted.
        error: why there is no metric.
    """

    criterion: str
    allocation: str = ""
    budget: str = ""
    seed: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def key(self) -> Key:
        return self.criterion, self.allocation, self.budget, self.seed

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}

    @staticmethod
    def of(values: dict[str, Any]) -> Row:
        """From what `to_dict` gave."""
        return Row(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True, slots=True)
class Line:
    """The rows of one criterion, allocation and budget, one per seed."""

    rows: tuple[Row, ...]

    @property
    def criterion(self) -> str:
        return self.rows[0].criterion

    @property
    def allocation(self) -> str:
        return self.rows[0].allocation

    @property
    def budget(self) -> str:
        return self.rows[0].budget

    @property
    def good(self) -> tuple[Row, ...]:
        """Those that have a metric."""
        return tuple(r for r in self.rows if r.error is None)

    def values(self, metric: str) -> list[float]:
        """The metric of each seed."""
        return [r.metrics[metric] for r in self.good]

    def metric(self, name: str) -> float | None:
        """The metric's mean over the seeds, None where all of them failed."""
        return fmean(self.values(name)) if self.good else None

    def kept(self, cost: str) -> float | None:
        """The mean share of a cost that remains, None where all seeds failed."""
        return fmean(r.kept[cost] for r in self.good) if self.good else None


def lines(rows: Iterable[Row]) -> tuple[Line, ...]:
    """The lines of some rows, in the order of their first ones."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault(row.key[:3], []).append(row)
    return tuple(Line(tuple(of_line)) for of_line in found.values())
