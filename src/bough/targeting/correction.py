"""Corrects a latency table by measured times of whole models: a factor per name of op, and an overhead per op.

An op that is timed alone finds its inputs in the cache; within a model it often does not, and a runtime spends time between
ops. So the latency of a model is modelled as a weighted sum of the times of its ops alone, and an overhead for each op:

    min_{f, c >= 0}  sum_i ((t_i - sum_k f_k x_ik - c n_i) / (noise t_i))^2 + sum_k ((f_k / f_0 - 1) / spread)^2 + (c / c_0)^2

with t_i the measured time of model i, x_ik the sum over its ops of name k by the table, n_i the number of its ops, f_0 the
factor common to all and c_0 the mean measured time per op.
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
from bough.latency.form import OVERHEAD
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
    """Return the table with a factor per name of op and an overhead per op, fitted to measured times of random cuts.

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
    plain = replace(table, factors={}, scale=1.0, op_overhead=1.0).part(graph)  # whose overhead counts the ops
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
    ops = parts.pop(OVERHEAD)
    factors, overhead = fitted_with_overhead(np.stack(list(parts.values()), axis=1), ops, np.array(seconds))
    return replace(table, factors=dict(zip(parts, factors.tolist(), strict=True)), scale=1.0, op_overhead=overhead)


def _width(share: float, group: Group, step: int) -> int:
    """Return a share of a group's units as a multiple of `step`, of groups that have more units than that."""
    units = round(share * group.size)
    return max(1, units if group.size <= step else min(group.size, max(step, round(units / step) * step)))


def fitted(parts: NDArray[np.float64], seconds: NDArray[np.float64], noise: float = _NOISE) -> NDArray[np.float64]:
    """Return the factors [names] by which times [models, names] sum to the measured seconds [models]; formula above."""
    common = float(np.median(seconds / parts.sum(axis=1)))
    found = _solved(common * parts / seconds[:, None], np.ones(parts.shape[1]), noise)
    factors: NDArray[np.float64] = common * np.clip(found, 1 / _RANGE, _RANGE)
    return factors


def fitted_with_overhead(
    parts: NDArray[np.float64], ops: NDArray[np.float64], seconds: NDArray[np.float64], noise: float = _NOISE
) -> tuple[NDArray[np.float64], float]:
    """Return (the factors [names], the seconds per op) by which times [models, names] and ops [models] sum to seconds [models].

    The overhead is the one coefficient that may come out negative: then it is 0, and the factors are those of `fitted`.
    """
    common, each = float(np.median(seconds / parts.sum(axis=1))), float(np.mean(seconds / ops))
    columns = np.column_stack([common * parts, each * ops]) / seconds[:, None]
    found = _solved(columns, np.append(np.ones(parts.shape[1]), 0.0), noise)
    if found[-1] <= 0:
        return fitted(parts, seconds, noise), 0.0
    return common * np.clip(found[:-1], 1 / _RANGE, _RANGE), float(each * found[-1])


def _solved(columns: NDArray[np.float64], prior: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Return the coefficients near `prior` [coefficients] by which columns [models, coefficients] sum to about 1."""
    rows = np.concatenate([columns / noise, np.eye(len(prior)) / _SPREAD])
    wanted = np.concatenate([np.full(len(columns), 1 / noise), prior / _SPREAD])
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0])
