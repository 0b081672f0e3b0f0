"""What plan to try next, so that what is measured comes to a target.

First plans are made for limits on the latency that the table predicts, its scale corrected by each measurement. Where two of
them are close by the table, and one is measured too fast and the other too slow, the table has missed something between them:
a kernel that is slower at one width than at the next. Then plans between the two are tried, on the path that takes the groups
of the slow one over, one after the other; a group at which the time jumps stays as it is in the fast one. Where that path
ends below the target, it goes on to the plan that was the next too slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bough.cost import LatencyTable
from bough.planning import Budget, Plan
from bough.planning.budget import Goal

_MARGIN = 0.25  # of the tolerance: how far below the target a latency is to be when measured here
_FINEST = 4  # parts of a group's way that are told apart

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan's counts, the sum of the table's times at scale 1, and the seconds measured."""

    counts: Counts
    plain: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Between:
    """Counts from those of `fast`, at 0, to those of `slow`, at the number of groups that differ: one group after another."""

    fast: Counts
    slow: Counts

    @property
    def differ(self) -> list[str]:
        return [n for n, k in self.fast.items() if self.slow[n] != k]

    def at(self, place: float) -> dict[str, int]:
        counts, whole = dict(self.fast), int(place)
        counts |= {n: self.slow[n] for n in self.differ[:whole]}
        for n in self.differ[whole : whole + 1]:
            counts[n] += round((place - whole) * (self.slow[n] - counts[n]))
        return counts


@dataclass
class Search:
    """What to plan for next: `goal`, until it is None; `learn` takes in what was measured of it."""

    budget: Budget
    target: float  # seconds
    tolerance: float
    table: LatencyTable
    rounds: list[tuple[float, float]] = field(default_factory=list)
    low: float = 0.0  # as limits, in sums of the table's times: the largest that gave what was measured to be too fast,
    high: float = float("inf")  # and the smallest sum that was measured to be too slow; later, places on `between`
    tried: float = 0.0
    fast: Tried | None = None
    slow: list[Tried] = field(default_factory=list)  # the last is the closest
    between: Between | None = None
    jumping: set[str] = field(default_factory=set)

    @property
    def goal(self) -> Goal | None:
        """None where no plan is left between what is too fast and what is too slow."""
        if self.between is None:
            limit = self._limit()
            if limit is not None:
                return replace(self.budget, latency=limit * self.table.scale)
        if self.between is None or self.high - self.low <= 1 / _FINEST:
            self.between = self._path()
        if self.between is None:
            return None
        self.tried = (self.low + self.high) / 2
        return self.between.at(self.tried)

    def _limit(self) -> float | None:
        """The middle of what settles, or where that is known to fail, between the two; None where limits lead no further."""
        if self.high < self.low * 1.001:
            return None
        if self.fast and self.slow and self.slow[-1].plain <= self.fast.plain * (1 + self.tolerance):
            return None
        self.tried = self.target * (1 - (1 + _MARGIN) / 2 * self.tolerance) / self.table.scale
        if not self.low < self.tried < self.high:
            self.tried = (self.low + min(self.high, 2 * self.low)) / 2 if self.low else self.high * (1 - self.tolerance)
        return self.tried

    def _path(self) -> Between | None:
        """The first, or the next: from where the last one has led."""
        if self.fast is None:
            return None
        start: Counts = self.fast.counts
        if self.between is not None:
            start = self.between.at(self.low)
            self.jumping |= set(self.between.differ[int(self.low) : int(self.low) + 1])
        while self.slow:
            path = Between(start, {n: start[n] if n in self.jumping else k for n, k in self.slow[-1].counts.items()})
            if path.differ:
                self.low, self.high = 0.0, float(len(path.differ))
                return path
            self.slow.pop()
        return None

    def settles(self, seconds: float) -> bool:
        """Whether a latency is within the tolerance, and so far below the target that noise does not lift it above."""
        return self.target * (1 - self.tolerance) <= seconds <= self._highest

    def known(self, plan: Plan) -> bool:
        """Whether a plan on the way between two need not be measured: it is one of them, or misses another limit."""
        if self.between is None:
            return False
        counts = {n: k for n, (k, _) in plan.groups.items()}
        costs, limits = plan.cost.to_dict(), self.budget.limits(plan.original)
        if counts == self.between.fast:
            self.low = self.tried
        elif counts == self.between.slow or any(costs[k] > limit for k, limit in limits.items() if k != "latency"):
            self.high = self.tried
        else:
            return False
        return True

    def unreachable(self) -> None:
        """No plan is small enough for the last limit, by the table as it now is."""
        self.low = self.tried

    def learn(self, plan: Plan, seconds: float) -> None:
        """Takes a measurement in; one that contradicts an older one is trusted."""
        predicted = plan.cost.latency
        assert predicted is not None
        self.rounds.append((predicted, seconds))
        made = Tried({n: k for n, (k, _) in plan.groups.items()}, predicted / self.table.scale, seconds)
        self.table = self.table.scaled(seconds / predicted)
        if self.between is not None:
            self.low, self.high = (self.low, self.tried) if seconds > self._highest else (self.tried, self.high)
        elif seconds > self._highest:
            self.high = made.plain
            self.slow = sorted([*self.slow, made], key=lambda t: -t.seconds)
            self.low = self.low if self.low < made.plain else 0.0
        elif not self.settles(seconds):
            self.low, self.fast = max(self.tried, made.plain), made  # no plan is between the two
            self.high = self.high if self.high > made.plain else float("inf")

    @property
    def _highest(self) -> float:
        return self.target * (1 - _MARGIN * self.tolerance)
