"""Criteria that remove units one by one, each time the unit whose removal changes the consumers' outputs least.

The score of a unit is the error of the consumers' outputs once it and all units before it are removed, so scores give the
order of removal and the error at each width. All consumers of a group take part, and their errors are added. Units are
neurons, channels (with their kernel positions), heads (with their dims), and key-value groups (with the dims of all their
queries).

Such scores are cumulative errors and must not be summed as importances are: the attribute `gives_errors` states that, and
`allocation="error"` is made for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_fields
from bough.calibration import (
    Data,
    InnerProducts,
    InputAxis,
    Moments,
    collect_moments,
    consumer_inputs,
    observed_axes,
    rounding_floor,
    scale_by_output_sensitivity,
    scale_by_output_variance,
)  # fmt: skip
from bough.errors import PlanError
from bough.graph import Graph, Group
from bough.importance.greedy import Combine, RemovalProblem, WithoutRepair, WithRepair, greedy_scores, unit_inner_products
from bough.importance.protocols import UnitScores

_LINEAR_FROM = 0.99  # relative error from which `lost_signal` continues as a straight line


class _GreedyRemoval:
    """What both criteria have in common: `lost_all` is the cost of losing all of an output, if errors are relative."""

    __slots__ = ()
    needs_data: ClassVar[bool] = True
    gives_errors: ClassVar[bool] = True
    lost_all: ClassVar[float]


@dataclass(frozen=True, slots=True)
class ThiNet(_GreedyRemoval):
    """Greedy reconstruction without repair: I_u = E||sum over removed units v, u included, of x_v W_v||^2.

    The error is over all outputs, not over sampled ones.

    Source: Luo et al., 2017.

    Attributes:
        sites: number of output positions per sample at which a convolution is sampled.
        step: number of units that are removed before costs are computed again.
        relative, probes: as for `OBS`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a number out of range.
    """

    sites: int = 128
    step: int = 1
    relative: bool = False
    probes: int = 0
    lost_all: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self)

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""
        return _scores(graph, data, self, lambda m, g: WithoutRepair(unit_inner_products(m, g.atom)))


@dataclass(frozen=True, slots=True)
class OBS(_GreedyRemoval):
    """Greedy reconstruction with repair: the cost of a unit is the exact error after solving the other weights again.

    For a consumer y = x W, let H = E[x x^T] + ridge * mean(diag H) I (of x - E[x] if a bias absorbs means), and S the columns
    of unit u. Its cost is 1/2 tr(W_S^T [(H^-1)_SS]^-1 W_S); then W -= (H^-1)_S [(H^-1)_SS]^-1 W_S, and H^-1 is downdated. I_u
    is the sum of the costs of u and of all units removed before. A product of two activations has no weights to solve; its
    costs are those of `ThiNet`. Time grows with the number of units times the square of a consumer's input width.

    Source: Hassibi and Stork, 1993 (optimal brain surgeon); Frantar et al., 2023 (ZipLM); Meng et al., 2024 (OSSCAR).

    Attributes:
        ridge: strength of the regularization, above 0.
        sites: number of output positions per sample at which a convolution is sampled.
        step: number of units that are removed before costs are computed again; more is faster and less exact.
        relative: whether outputs are scaled by the batch norm that follows, and errors are shares e of the variance of the sum
            to which outputs are added (of a product of activations, such as queries by keys, of its own). The score is then the
            sum of -log(1 - e) over the n consumers, divided by the square root of n (see `lost_signal`), and scores of
            different groups can be compared.
        probes: if not 0, outputs of linear layers and convolutions are weighted by how much the model's output depends on them
            (the diagonal of Gauss-Newton), so errors in outputs that later layers ignore cost nothing. Takes this number of
            backward passes per batch, and no labels. Without `relative`, scores are squared changes of the model's output, to
            first order.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a number out of range.
    """

    ridge: float = 0.01
    sites: int = 128
    step: int = 1
    relative: bool = False
    probes: int = 0
    lost_all: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self)
        if self.ridge <= 0:
            raise PlanError(f"OBS(ridge={self.ridge}): must be positive, so that H can be inverted whatever the data")

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of all groups."""

        def problem(moments: Moments | InnerProducts, group: Group) -> RemovalProblem:
            if isinstance(moments, InnerProducts):
                return WithoutRepair(unit_inner_products(moments, group.atom) / 2)
            raw = moments.merge_uneven_blocks(group.atom)
            centered = raw
            if moments.biased:
                centered = replace(moments, second=moments.covariance).merge_uneven_blocks(group.atom)
            return WithRepair(centered.second, centered.weight, raw.columns(group.atom), self.ridge, rounding_floor(raw.second))

        return _scores(graph, data, self, problem)


def _check_counts(criterion: ThiNet | OBS) -> None:
    """Raise PlanError if a number of sites, steps or probes is out of range."""
    counts = (criterion.sites, criterion.step, criterion.probes)
    if not all(isinstance(n, Integral) for n in counts) or min(counts) < 0 or 0 in counts[:2]:
        options = f"sites={criterion.sites}, step={criterion.step}, probes={criterion.probes}"
        raise PlanError(f"{type(criterion).__name__}({options}): whole numbers, sites and step at least 1")


def lost_signal(errors: NDArray[np.float64]) -> float:
    """Return the lost signal of a group from the relative errors e of its n consumers: sum of -log(1 - e), over root n.

    The share 1 - e that is left multiplies from layer to layer, so its logarithm adds up over groups. The consumers of one
    group, as of a residual stream, lose the same units: their losses are neither one loss (a mean) nor independent (a sum), and
    the geometric mean of the two works best (docs/decisions/0014). Above 99 %, the logarithm continues as a straight line;
    errors above 1, which only removal without repair can have, are added as they are.

    Args:
        errors: [n].

    Example:
        >>> import numpy as np
        >>> round(lost_signal(np.array([0.5])), 4)
        0.6931
    """
    share = np.minimum(errors, _LINEAR_FROM)
    linear = (np.clip(errors, _LINEAR_FROM, 1.0) - _LINEAR_FROM) / (1 - _LINEAR_FROM) + np.maximum(errors - 1.0, 0.0)
    return float((linear - np.log1p(-share)).sum() / np.sqrt(len(errors)))


def _scores(
    graph: Graph, data: Data, criterion: ThiNet | OBS, problem: Callable[[Moments | InnerProducts, Group], RemovalProblem]
) -> UnitScores:  # fmt: skip
    """Return greedy scores of all groups, from moments of one pass (and one more each for `relative` and `probes`)."""
    axes = {name: _without_mirrors(found) for name, found in consumer_inputs(graph).items()}
    wanted = [axis for found in axes.values() for axis in found]
    moments = collect_moments(graph, data, wanted, sites=criterion.sites, title=type(criterion).__name__)
    if criterion.relative:
        moments = scale_by_output_variance(graph, data, moments)
    if criterion.probes:
        moments = scale_by_output_sensitivity(graph, data, moments, criterion.probes, keep_totals=criterion.relative)
    combine: Combine = (lambda costs: lost_signal(costs / criterion.lost_all)) if criterion.relative else np.sum
    scores = {}
    for group in graph.groups:
        problems = [problem(moments[axis], group) for axis in observed_axes(group.name, axes[group.name], moments)]
        scores[group.name] = greedy_scores(problems, group.size, criterion.step, combine)
    return scores


def _without_mirrors(axes: Sequence[InputAxis]) -> list[InputAxis]:
    """Return the axes with one of the two factors of each product of activations."""
    contractions: set[int] = set()
    result = []
    for axis in axes:
        if axis.weight is None and axis.contraction is not None:
            if id(axis.contraction) in contractions:
                continue
            contractions.add(id(axis.contraction))
        result.append(axis)
    return result
