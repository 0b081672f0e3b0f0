"""Allocation for scores that are errors: units leave where the least error is made for what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bough.arguments import check_fields
from bough.cost import ClosedForm
from bough.errors import PlanError
from bough.planning.allocation.columns import Column
from bough.planning.allocation.greedy import Greedy
from bough.planning.allocation.knapsack import Knapsack
from bough.planning.allocation.milp import Milp
from bough.planning.allocation.problem import Allocation


@dataclass(frozen=True, slots=True)
class LeastError:
    """Takes the score of a unit as the error that is made once it and all of its group before it are gone.

    Of a group the scores, sorted, then are the errors at each width, and a step loses what the error rises by: the scores
    of the units before are in it already, and are not added up again. The errors of groups do add up, as they are. So they
    must be comparable: those of `OBS(relative=True)` are, those of `OBS` and `ThiNet` where consumers' outputs are of like
    scale. Criteria say that they give such scores by `gives_errors`.

    `by` decides with these losses: `Greedy` goes down to the width of the least rise per cost saved, `Milp` finds the least
    sum of errors.

    Raises:
        PlanError: scores below 0, which are no errors (when called).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [torch.randn(16, 4) for _ in range(3)]
        >>> graph = bough.trace(net, batches[0])
        >>> scores = bough.score(graph, bough.importance.OBS(relative=True), batches)
        >>> bough.plan(graph, scores, bough.Budget(macs="50%"), allocation=LeastError()).groups
        {'0': (4, 8)}
    """

    by: Greedy | Knapsack | Milp = field(default_factory=Greedy)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
        below = [g.name for c in columns for g, s in zip(c.groups, c.highest.T, strict=True) if (s < 0).any()]
        if below:
            raise PlanError(f"scores[{below[0]!r}] are below 0, and LeastError takes errors: score by OBS or ThiNet")
        rises = [replace(c, drops=np.diff(c.highest, axis=0, prepend=0.0)) for c in columns]
        return replace(self.by, relative=False)(form, rises, limits)
