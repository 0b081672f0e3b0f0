"""Targets of refit: what the cut model's layers have to give, from the tensors of both runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bough.calibration import Observed
from bough.graph import Graph
from bough.planning import Plan
from bough.recovery.correspondence import folded_factors, name_after_cut, select_kept
from bough.recovery.refit.consumers import Consumer, ResidualInput
from bough.spaces import Atom, Kept, Space
from bough.tracing.flow import channel_scale


@dataclass(frozen=True, eq=False, slots=True)
class Targets:
    """Targets from the runs of a dense model and of the model cut from it.

    Attributes:
        dense, small: graphs of both models.
        plan: by which the dense model was cut.
        kept: the kept units, as `kept_units` returns them.
    """

    dense: Graph
    small: Graph
    plan: Plan
    kept: Mapping[Atom, Kept]

    def select(self, tensor: Tensor, axes: Sequence[Space]) -> Tensor:
        """Return the kept units of a tensor of the dense run."""
        selected = select_kept(tensor, axes, self.kept)
        assert selected is not None  # `find_consumers` returns no other consumers
        return selected

    def outputs(self, c: Consumer, dense: Observed, weight: Tensor) -> Tensor:
        """Return the dense model's outputs for the kept units, times the factors that the plan has folded into the weight.

        Args:
            c: the consumer.
            dense: tensors observed in the dense run.
            weight: of the cut model.
        """
        op = self.dense.ops[c.dense.op]
        outputs = self.select(dense[c.dense.op, True][0], op.results[0])
        scales = [s for s in self.plan.scales if name_after_cut(s.name, self.plan) == c.name]
        return outputs * folded_factors(op, scales, self.kept).to(weight) if scales else outputs

    def residual_error(self, residual: ResidualInput, dense: Observed, small: Observed) -> Tensor | float:
        """Return the difference between the dense model's residual input and the cut model's, before the norm in between."""
        dense_value = self.select(dense[residual.dense[0], True][residual.dense[1]], residual.add.arguments[residual.argument])
        small_value = small[residual.small[0], True][residual.small[1]]
        if dense_value.shape != small_value.shape:
            return 0.0  # the value is broadcast
        if residual.norm is None:
            return dense_value - small_value
        scale = channel_scale(self.small, residual.norm)
        near_zero = scale.abs() <= 1e-3 * scale.abs().max()
        inverse = torch.where(near_zero, 0.0, 1 / torch.where(near_zero, 1.0, scale))
        return (dense_value - small_value) * inverse.view(-1, *(1,) * (small_value.dim() - 2))

    def residual_sum(self, residual: ResidualInput, y: Tensor, dense: Observed) -> Tensor | None:
        """Return the sum of the dense model's output and residual input, unless a batch norm stands in between.

        Without a batch norm, a later layer normalizes each row of the sum, so the relative error of a row is what matters;
        otherwise a few large rows would dominate the fit.
        """
        dense_value = self.select(dense[residual.dense[0], True][residual.dense[1]], residual.add.arguments[residual.argument])
        return y + dense_value if residual.norm is None and dense_value.shape == y.shape else None


def inverse_squares(squares: Tensor) -> Tensor:
    """Return weights 1 / squares of rows [N], so that relative errors count.

    A row of zeros, such as padding, has no relative error and gets weight 0. A row that is almost zero gets at most the weight
    of a thousand median rows.
    """
    is_nonzero = squares > 0
    if not is_nonzero.any():
        return torch.zeros_like(squares)
    median = squares[is_nonzero].median()
    return torch.where(is_nonzero, 1 / squares.clamp_min(1e-3 * median), 0.0)
