"""What a search optimizes, and which bounds on metrics candidates must meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from bough.errors import SearchError
from bough.graph import FIELDS

Direction = str
_DIRECTIONS = ("max", "min")


@dataclass(frozen=True, slots=True)
class Goals:
    """Objectives with their directions, and bounds on metrics.

    Attributes:
        directions: {metric or field of `Cost`: "max" or "min"}; the first one ranks.
        at_least, at_most: bounds on metrics of `evaluate`, which are known only once a candidate is evaluated.
    """

    directions: Mapping[str, Direction]
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)

    def costs(self, metrics: Sequence[str]) -> list[str]:
        """Return the objectives that are costs by the closed form: those that `evaluate` does not give."""
        return [name for name in self.directions if name not in metrics]

    def values(self, metrics: Mapping[str, float], cost: Mapping[str, float]) -> list[float]:
        """Return the values of the objectives, in their order."""
        return [float(metrics[name] if name in metrics else cost[name]) for name in self.directions]

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return by how much each bound is missed, as a share of the bound; zero or less where it is met.

        Example:
            >>> Goals({"accuracy": "max"}, at_least={"accuracy": 0.8}).violations({"accuracy": 0.6})["accuracy >= 0.8"] > 0
            True
        """
        low = {f"{n} >= {limit:g}": (limit - metrics[n]) / (abs(limit) or 1.0) for n, limit in self.at_least.items()}
        high = {f"{n} <= {limit:g}": (metrics[n] - limit) / (abs(limit) or 1.0) for n, limit in self.at_most.items()}
        return {**low, **high}

    def losses(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return values such that smaller is better for each."""
        return tuple(-v if d == "max" else v for v, d in zip(values, self.directions.values(), strict=True))

    def to_dict(self) -> dict[str, object]:
        return {"objectives": dict(self.directions), "at_least": dict(self.at_least), "at_most": dict(self.at_most)}


def goals_of(
    objectives: Mapping[str, Direction] | None, at_least: Mapping[str, float] | None, at_most: Mapping[str, float] | None,
    metrics: Sequence[str], costs: Sequence[str], bounded: bool,
) -> Goals:  # fmt: skip
    """Return the goals of a search; by default the first metric is maximized, and without a budget MACs are minimized.

    Args:
        objectives, at_least, at_most: as given by the user.
        metrics: names that `evaluate` gave for the dense model.
        costs: fields of `Cost` that are known.
        bounded: whether there is a budget.

    Raises:
        SearchError: an objective or bound that is neither a metric nor a known cost, or a direction that is unknown.
    """
    if objectives is None:
        objectives = {metrics[0]: "max"} | ({} if bounded else {"macs": "min"})
    if not objectives:
        raise SearchError("objectives={}: name at least one metric or cost, such as objectives={'accuracy': 'max'}")
    for name, direction in objectives.items():
        if direction not in _DIRECTIONS:
            raise SearchError(f"objectives={{{name!r}: {direction!r}}}: write 'max' or 'min'")
        if name not in metrics and name not in costs:
            raise SearchError(f"objectives names {name!r}, which {_missing(name, metrics, costs)}")
        if name not in metrics and direction == "max":
            raise SearchError(f"objectives={{{name!r}: 'max'}}: a cost can only be minimized")
    for option, bounds in (("at_least", at_least), ("at_most", at_most)):
        for name in bounds or ():
            if name not in metrics:
                hint = ": bound costs by the budget" if name in costs else ""
                raise SearchError(f"{option} names {name!r}, which is no metric of evaluate ({', '.join(metrics)}){hint}")
    return Goals(dict(objectives), dict(at_least or {}), dict(at_most or {}))


def check_noise(noise: Mapping[str, float], metrics: Sequence[str]) -> None:
    """Raise SearchError for a standard error that is negative, or of no metric of `evaluate`."""
    for name, error in noise.items():
        if name not in metrics:
            raise SearchError(f"noise names {name!r}, which is no metric of evaluate ({', '.join(metrics)})")
        if not 0 <= error < inf:
            raise SearchError(f"noise={{{name!r}: {error}}}: a standard error is wanted, at least 0")


def _missing(name: str, metrics: Sequence[str], costs: Sequence[str]) -> str:
    if name == "latency":
        return "needs table=bough.LatencyTable.measure(graph), or a metric 'latency' that evaluate measures"
    if name == "stored":
        return "needs a budget with a precision, such as bough.Budget(size='1 MiB', precision='int8')"
    known = [*metrics, *(c for c in FIELDS if c in costs)]
    return f"is neither a metric of evaluate nor a cost: there are {', '.join(known)}"
