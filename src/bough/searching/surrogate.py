"""A model of how far a candidate's outputs are from the dense model's, learned from the candidates that were evaluated.

The scores say what each width of a group loses, looked at alone. How much of it reaches the outputs differs between groups, so
the divergence of candidate t is modelled as a weighted sum of the losses x_ti of its columns, and the weights are fitted:

    min_w  sum_t ((d_t - sum_i w_i x_ti) / (noise d_t))^2 + sum_i ((w_i / w_0 - 1) / spread)^2

with d_t the divergence and w_0 the median of d_t / sum_i x_ti: without evaluations, all groups weigh the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bough.errors import PlanError
from bough.planning.allocation import Column, Greedy, allocated
from bough.searching.space import Choice, SearchSpace
from bough.targeting.correction import fitted

_NOISE = 0.15  # relative error of a sum of losses as a model of the divergence
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Weights of the losses of a space's columns.

    Attributes:
        space: with the losses by the scores.
        weights: one per column.
    """

    space: SearchSpace
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, space: SearchSpace, choices: Sequence[Choice], divergences: Sequence[float]) -> Surrogate:
        """Fit the weights to the divergences of choices; equal weights where nothing can be learned from them."""
        known = [
            (x, d) for x, d in zip(map(space.losses, choices), divergences, strict=True) if x.sum() > _LEAST and 0 < d < np.inf
        ]
        if not known or not space.columns:
            return cls(space, np.ones(len(space.columns)))
        parts, wanted = np.stack([x for x, _ in known]), np.array([d for _, d in known])
        return cls(space, fitted(parts, wanted, noise=_NOISE))

    def loss(self, choice: Choice) -> float:
        """Return the divergence that is expected of a choice; layers that are left out are not counted."""
        return float(self.weights @ self.space.losses(choice))

    def least(self, limits: Mapping[str, float]) -> Choice | None:
        """Return the choice within limits of which the least divergence is expected, greedily; None if there is none."""
        form = self.space.pricing.form(self.space.always_out)
        weighed = [self._weighed(i, column) for i, column in enumerate(self.space.columns)]
        try:
            found = allocated(Greedy(relative=False), form, weighed, limits)
        except PlanError:
            return None
        return self.space.choice_of(found.counts) if found.met else None

    def _weighed(self, index: int, column: Column) -> Column:
        """Return a column whose steps lose what the surrogate expects, all of it in the first of its tied groups."""
        drops = np.zeros_like(column.drops)
        drops[:, 0] = np.maximum(np.diff(self.space.lost[index]), 0.0) * self.weights[index]
        return replace(column, drops=drops)
