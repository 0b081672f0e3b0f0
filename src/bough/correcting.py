"""Corrects a table of op times by whole models: a factor per name of op.

Alone, an op finds its inputs in the cache and its memory at hand; within a model some ops find less of that than others.
So the time of a model is taken as a weighted sum of what its ops take alone, and the weights are fitted:

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
from bough.cost import LatencyTable
from bough.cutting import cut
from bough.graph import Graph
from bough.importance import Random, score
from bough.planning import plan
from bough.planning.allocation import form_of
from bough.planning.budget import LeastOfTied

_NOISE = 0.05  # of a time, as a share: of measuring it, and of taking it for a sum
_SPREAD = 1.0  # of the factors about the common one, as a share of it
_RANGE = 10.0  # how far a factor may be from the common one


def correct_table(
    graph: Graph, table: LatencyTable, measure: Callable[[nn.Module], float], *, plans: int = 12, seed: int = 0
) -> LatencyTable:
    """The table with a factor per name of op, fitted to measured times of the model and of random cuts of it.

    Args:
        graph: of the model.
        table: of the device and backend that `measure` measures on.
        measure: gives the seconds of a model.
        plans: random cuts: widths of groups of equal form are drawn together, so that the models differ in what they are
            made of.
        seed: of the cuts.
    """
    check_arguments(correct_table, locals())
    rng = np.random.default_rng(seed)
    plain = replace(table, factors={}, scale=1.0).part(graph)
    scores = score(graph, Random(seed))
    counts, seconds = [[float(g.size) for g in graph.groups]], [measure(graph.model)]
    for _ in range(plans):
        shares: dict[object, float] = {}
        for g in graph.groups:
            shares.setdefault(form_of(g), float(rng.uniform(0.1, 1.0)))
        keep = LeastOfTied({g.name: max(1, round(shares[form_of(g)] * g.size)) for g in graph.groups})
        decided = plan(graph, scores, keep=keep)
        counts.append([float(decided.groups[g.name][0]) for g in graph.groups])
        seconds.append(measure(cut(graph.model, decided)))
    parts = plain.by_name(np.array(counts))
    factors = fitted(np.stack(list(parts.values()), axis=1), np.array(seconds))
    return replace(table, factors=dict(zip(parts, factors.tolist(), strict=True)), scale=1.0)


def fitted(parts: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors [names] of times [models, names] that sum to what is measured [models]; see above."""
    common = float(np.median(seconds / parts.sum(axis=1)))
    rows = common * parts / (_NOISE * seconds[:, None])
    names = parts.shape[1]
    prior = np.eye(names) / _SPREAD
    wanted = np.concatenate([np.full(len(rows), 1 / _NOISE), prior.sum(axis=1)])
    found = np.linalg.lstsq(np.concatenate([rows, prior]), wanted, rcond=None)[0]
    return common * np.clip(found, 1 / _RANGE, _RANGE)
