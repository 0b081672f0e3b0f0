"""Corrects a latency table by measured times of whole models: a factor per name of op.

An op that is timed alone finds its inputs in the cache; within a model it often does not. So the latency of a model is
modelled as a weighted sum of the times of its ops alone, and the weights are fitted:

    min_f  sum_i ((t_i - sum_k f_k x_ik) / (noise t_i))^2 + sum_k ((f_k / f_0 - 1) / spread)^2

with t_i the measured time of model i, x_ik the sum over its ops of name k by the table, and f_0 the factor common to all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.arguments import check_arguments
from bough.cutting import cut
from bough.errors import PlanError
from bough.graph import Graph, Group
from bough.importance import Random, score
from bough.latency import LatencyTable
from bough.planning import plan
from bough.planning.allocation import form_of
from bough.planning.budget import LeastOfTied

_NOISE = 0.05  # relative error of a measured time and of the model as a sum
_SPREAD = 1.0  # standard deviation of the factors, relative to the common factor
_RANGE = 10.0  # largest ratio between a factor and the common one


def correct_table(
    graph: Graph,
    table: LatencyTable,
    measure: Callable[[nn.Module], float],
    *,
    plans: int = 12,
    seed: int = 0,
    round_to: int | None = None,
) -> LatencyTable:
    """Return the table with a factor per name of op, fitted to measured times of the model and of random cuts of it.

    Args:
        graph: of the model.
        table: of the device and backend that `measure` measures on.
        measure: returns the seconds of a model.
        plans: number of random cuts; groups of equal shape get equal widths, so that the models differ in their mix of ops.
        seed: seed of the random cuts.
        round_to: widths of the random cuts are multiples of this, as those of the plans to come should be; the table's
            `quantum` unless given. Runtimes compute other widths by slower kernels, of which the table knows nothing.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> table = bough.LatencyTable.measure(graph, seconds=0.0, progress=False)
        >>> def seconds(model):  # stands for a measurement: all ops take twice the time of the table
        ...     return 2 * float(table.seconds(graph, {"0": model[0].out_features})[0])
        >>> corrected = correct_table(graph, table, seconds, plans=3)
        >>> abs(float(corrected.seconds(graph)[0]) / seconds(net) - 1) < 0.01
        True
    """
    check_arguments(correct_table, locals())
    if round_to is not None and round_to < 1:
        raise PlanError(f"round_to={round_to}: must be at least 1")
    rng, step = np.random.default_rng(seed), table.quantum if round_to is None else round_to
    plain = replace(table, factors={}, scale=1.0).part(graph)
    scores = score(graph, Random(seed))
    counts, seconds = [[float(g.size) for g in graph.groups]], [measure(graph.model)]
    for _ in range(plans):
        shares: dict[object, float] = {}
        for g in graph.groups:
            shares.setdefault(form_of(g), float(rng.uniform(0.1, 1.0)))
        keep = LeastOfTied({g.name: _width(shares[form_of(g)], g, step) for g in graph.groups})
        random_plan = plan(graph, scores, keep=keep)
        counts.append([float(random_plan.groups[g.name][0]) for g in graph.groups])
        seconds.append(measure(cut(graph.model, random_plan)))
    parts = plain.seconds_by_op(np.array(counts))
    factors = fitted(np.stack(list(parts.values()), axis=1), np.array(seconds))
    return replace(table, factors=dict(zip(parts, factors.tolist(), strict=True)), scale=1.0)


def _width(share: float, group: Group, step: int) -> int:
    """Return a share of a group's units as a multiple of `step`, of groups that have more units than that."""
    units = round(share * group.size)
    return max(1, units if group.size <= step else min(group.size, max(step, round(units / step) * step)))


def fitted(parts: NDArray[np.float64], seconds: NDArray[np.float64], noise: float = _NOISE) -> NDArray[np.float64]:
    """Return the factors [names] by which times [models, names] sum to the measured seconds [models]; formula above."""
    common = float(np.median(seconds / parts.sum(axis=1)))
    rows = common * parts / (noise * seconds[:, None])
    names = parts.shape[1]
    prior = np.eye(names) / _SPREAD
    wanted = np.concatenate([np.full(len(rows), 1 / noise), prior.sum(axis=1)])
    found = np.linalg.lstsq(np.concatenate([rows, prior]), wanted, rcond=None)[0]
    factors: NDArray[np.float64] = common * np.clip(found, 1 / _RANGE, _RANGE)
    return factors
