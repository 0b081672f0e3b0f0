"""`supernet`: make a supernet of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data
from bough.importance import Criterion, DataCriterion, score
from bough.supernet.elastic import subnet_space
from bough.supernet.ordering import importance_order, order_units, scores_of
from bough.supernet.space import SubnetSpace
from bough.supernet.supernet import Supernet
from bough.tracing import trace
from bough.tracing.capture.wrapped import traceable
from bough.tracing.selection import Selection
from bough.tracing.typing.ties import Ties


def supernet(
    model: nn.Module,
    example_inputs: Any,
    *,
    importance: str | Criterion | DataCriterion = "group",
    data: Data | Iterable[Any] | None = None,
    ignore: Selection = (),
    only: Selection | None = None,
    tie: Ties | None = None,
    round_to: int | str = 1,
    minimum: float | Mapping[Any, float] = 0.25,
    depth: bool | Iterable[str] = False,
) -> Supernet:
    """Return a model of elastic widths and depth, in which the units of every elastic group are ordered by importance.

    A subnet keeps the first, most important units of each group, and may leave out layers. The supernet computes what `model`
    does; `model` stays as it was, and its classes are not rewritten.

    Source: Yu and Huang, 2019 (universally slimmable networks); Cai et al., 2020 (once-for-all).

    Args:
        model, example_inputs, ignore, only, tie: as for `trace`.
        importance: criterion by which units are ordered, as for `score`.
        data: batches for a criterion on data.
        round_to: widths of subnets are multiples of this, as for `plan`.
        minimum: the smallest width of a group, a number of units or a share below 1, as for `plan`.
        depth: which layers may be left out: False for none; True for the entries of lists that can be left out, the last one
            first (of a list whose entries all can, the first entry stays); or names and patterns of `graph.layers`.

    Raises:
        ArgumentError: an argument of another type.
        TraceError: as for `trace`.
        PlanError: nothing is elastic, or an option names nothing.
        ConflictError: the model does not run without the elastic layers.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> nested = supernet(net, x)
        >>> torch.allclose(nested(x), net(x), atol=1e-6)
        True
        >>> with nested.at({"0": 4}):
        ...     loss = nested(x).square().mean()
        >>> loss.backward()
        >>> small = nested.extract({"0": 4}).model
        >>> small[0].out_features
        4
    """
    check_arguments(supernet, locals())
    inner = traceable(model)
    graph = trace(inner, example_inputs, ignore=ignore, only=only, tie=tie)
    scores = score(graph, importance, data)
    first, frozen, allowed = subnet_space(graph, scores, round_to=round_to, minimum=minimum, depth=depth)
    elastic = {name for width in first.widths for name in width.groups}
    order = {name: units for name, units in importance_order(graph, scores).items() if name in elastic}
    graph = trace(order_units(inner, graph, order), example_inputs, ignore=ignore, only=only, tie=tie)
    scores = {name: np.sort(np.asarray(scores[name], dtype=np.float64))[::-1] for name in order}
    return Supernet(SubnetSpace(graph, first.widths, first.depths), frozen, allowed, scores_of(graph, scores))
