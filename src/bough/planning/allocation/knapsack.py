"""The precedence-constrained knapsack: steps of a column are taken in order, one additive cost has to fit (HALP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.errors import PlanError
from bough.planning.allocation.columns import Column
from bough.planning.allocation.greedy import ROUNDS, Arrays, cheapest, cumulated, improved
from bough.planning.allocation.problem import Allocation, Problem, Taken


@dataclass(frozen=True, slots=True)
class Knapsack:
    """Dynamic programming over the budget (HALP, Shen et al., 2022): the least importance lost whose costs fit.

    The cost of a column is taken at the widths that the others have in the plan before, and the program solved again for
    the plan that comes out, up to `rounds` times; the first plan is the greedy one, and the best of all is kept. So it is
    exact where no op is between two groups, and never worse than `Greedy`. Of several limits, the one that the plan comes
    closest to is the knapsack's; the others are met by greedy steps after it.

    Args:
        relative: losses of the share of each group's importance, see `Column.losses`.
        rounds: most programs solved.
        bins: parts of the budget; whole numbers that are fewer are taken as they are.

    Raises:
        PlanError: a limit on peak memory, which is no sum (when called).
    """

    relative: bool = True
    rounds: int = 8
    bins: int = 10_000

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        for name in limits:
            if len(form.parts[name].matrix) != 1:
                raise PlanError(f"Knapsack takes costs that are sums, and {name} is a maximum: use Greedy or Milp")
        problem = Problem(form, columns, limits)
        smallest = problem.unreachable()
        if smallest is not None:
            return smallest
        lost = cumulated(columns, self.relative)
        first = cheapest(problem, lost, ROUNDS)
        best = improved(problem, lost, first, self.rounds, lambda found: self._near(problem, lost, found))
        return problem.allocation(best)

    def _near(self, problem: Problem, lost: Arrays, taken: Taken) -> Taken:
        """The best plan by the costs that each column has beside the others of `taken`."""
        name, limit = problem.closest(taken)
        costs = [problem.alone(name, taken, i) for i in range(len(taken))]
        fixed = problem.ratios(taken)[name] * limit - sum(c[k] for c, k in zip(costs, taken, strict=True))
        capacity = limit * (1 + 1e-12) - fixed - sum(c[-1] for c in costs)
        if capacity <= 0:
            return taken
        weights = [c - c[-1] for c in costs]
        whole = capacity <= self.bins and all((w == np.round(w)).all() for w in weights)
        unit = 1.0 if whole else capacity / self.bins
        return fit([np.ceil(w / unit - 1e-9).astype(np.int64) for w in weights], lost, int(capacity / unit))


def fit(weights: Sequence[NDArray[np.int64]], lost: Arrays, capacity: int) -> Taken:
    """One choice k of each column, with the sum of weights[k] at most `capacity` and the sum of lost[k] least.

    The last choice of each column must weigh nothing.
    """
    best = np.zeros(capacity + 1)  # by room that is left for the columns so far
    choices = np.zeros((len(weights), capacity + 1), dtype=np.int32)
    for i, (weight, loss) in enumerate(zip(weights, lost, strict=True)):
        before, best = best, np.full(capacity + 1, np.inf)
        for k in range(len(weight)):
            start = int(weight[k])
            if start <= capacity:
                value = before[: capacity + 1 - start] + loss[k]
                better = value < best[start:]
                best[start:][better] = value[better]
                choices[i, start:][better] = k
    taken = np.zeros(len(weights), dtype=np.int64)
    room = capacity
    for i in range(len(weights) - 1, -1, -1):
        taken[i] = choices[i, room]
        room -= int(weights[i][taken[i]])
    return taken
