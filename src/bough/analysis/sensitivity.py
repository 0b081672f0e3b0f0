"""Measures how the loss of a model grows as each group is cut alone: the input of the allocator `Sensitivity`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.arguments import check_arguments
from bough.cutting import cut
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.graph import Graph
from bough.planning import plan


def sensitivity(
    graph: Graph,
    scores: Mapping[str, NDArray[np.float64]],
    evaluate: Callable[[nn.Module], float],
    widths: Sequence[float] = (0.75, 0.5, 0.25),
) -> dict[str, list[tuple[int, float]]]:
    """Cut each group alone (and the groups that the model's Python ties to it) to some widths, and evaluate the cut model.

    Returns {group: [(units kept, loss), ...]}, plain data for JSON. A group that cannot be cut has one point, at all units.

    Args:
        graph, scores: as for `bough.plan`.
        evaluate: returns the loss of a model, lower is better. It gets a fresh copy each time.
        widths: fractions of the units kept, each above 0 and below 1.

    Raises:
        PlanError: no widths, one that is not between 0 and 1, or a loss that is NaN.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> graph = bough.trace(net, x)
        >>> scores = bough.score(graph, bough.importance.Magnitude())
        >>> with torch.no_grad():
        ...     curves = sensitivity(graph, scores, lambda model: float((model(x) - net(x)).pow(2).mean()), [0.5])
        >>> [kept for kept, loss in curves["0"]]
        [8, 4]
    """
    check_arguments(sensitivity, locals())
    if not widths or not all(0 < w < 1 for w in widths):
        raise PlanError(f"widths={list(widths)!r}: give shares of the units, each above 0 and below 1")

    def loss(model: nn.Module, what: str) -> float:
        value = float(evaluate(model))
        if math.isnan(value):
            raise PlanError(f"evaluate gives NaN for {what}")
        return value

    whole = loss(copied(graph.model, lambda name, tensor, parameter: tensor.clone())[0], "the whole model")
    curves = {}
    for g in graph.groups:
        points = {g.size: whole}
        for share in sorted(widths, reverse=True):
            cut_plan = plan(graph, scores, keep={g.name: max(1, round(share * g.size))})
            kept = cut_plan.groups[g.name][0]
            if kept not in points:
                points[kept] = loss(cut(graph.model, cut_plan), f"{kept} units of {g.name}")
        curves[g.name] = sorted(points.items(), reverse=True)
    return curves
