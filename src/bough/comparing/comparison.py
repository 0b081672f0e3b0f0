"""What `compare` gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.arguments import check_arguments
from bough.comparing.naming import budget_name
from bough.comparing.rows import Line, Row, lines
from bough.errors import ComparisonError
from bough.planning import Budget


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of a comparison, the dense model's first; prints as a table, with the best of each budget on top.

    `lower_is_better`: of the first metric.
    """

    rows: tuple[Row, ...]
    lower_is_better: bool = False

    @property
    def dense(self) -> Row:
        """The row of the model as it was."""
        return self.rows[0]

    @property
    def metric(self) -> str:
        """The name of the metric that is sorted by and plotted: the first that `evaluate` gave."""
        return next(iter(self.dense.metrics))

    @property
    def lines(self) -> tuple[Line, ...]:
        """Rows that differ in their seed alone together, the best of each budget first, budgets in the order given."""
        found = lines(self.rows[1:])
        order = list(dict.fromkeys(line.budget for line in found))
        return tuple(sorted(found, key=lambda line: (order.index(line.budget), *self._rank(line))))

    def best(self, budget: Budget | str) -> Line:
        """The line of the best first metric (mean over seeds) under a budget; Random's, where none beats it.

        Raises:
            ComparisonError: the budget is not in the comparison, or all of it failed.
        """
        check_arguments(Comparison.best, locals())
        name = budget if isinstance(budget, str) else budget_name(budget)
        of_budget = [line for line in self.lines if line.budget == name]
        if not of_budget:
            there = ", ".join(dict.fromkeys(r.budget for r in self.rows[1:]))
            raise ComparisonError(f"the budget {name!r} is not in this comparison, which has {there}")
        if not of_budget[0].good:
            raise ComparisonError(f"under the budget {name!r} every row failed: {of_budget[0].rows[0].error}")
        return of_budget[0]

    def to_dict(self) -> dict[str, Any]:
        rows = [r.to_dict() for r in self.rows]
        return {"metric": self.metric, "lower_is_better": self.lower_is_better, "rows": rows}

    def plot(self, path: str | Path, against: str | None = None) -> None:
        """Draws the first metric against the share of a cost that is kept, as a PNG; see `bough.comparing.plot`."""
        check_arguments(Comparison.plot, locals())
        from bough.comparing.plot import plot

        plot(self, Path(path), against)

    def __str__(self) -> str:
        from bough.comparing.table import table

        return table(self)

    __repr__ = __str__

    def _rank(self, line: Line) -> tuple[bool, float]:
        value = line.metric(self.metric)
        return value is None, 0.0 if value is None else (value if self.lower_is_better else -value)
