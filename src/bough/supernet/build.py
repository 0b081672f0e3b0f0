"""`supernet`: make a supernet of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data
from bough.errors import PlanError
from bough.graph import Graph
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
        PlanError: nothing is elastic, an option names nothing, or the model holds a tensor over elastic units that is neither a
            parameter nor a buffer, such as what an earlier call has left in a cache.
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
    _refuse_caches(graph, elastic)
    order = {name: units for name, units in importance_order(graph, scores).items() if name in elastic}
    graph = trace(order_units(inner, graph, order), example_inputs, ignore=ignore, only=only, tie=tie)
    scores = {name: np.sort(np.asarray(scores[name], dtype=np.float64))[::-1] for name in order}
    return Supernet(SubnetSpace(graph, first.widths, first.depths), frozen, allowed, scores_of(graph, scores))


def _refuse_caches(graph: Graph, elastic: Collection[str]) -> None:
    """Raise PlanError if a tensor over elastic units is neither a parameter nor a buffer: training would not reach it."""
    registered = {name for name, _ in graph.model.named_parameters(remove_duplicate=False)}
    registered |= {name for name, _ in graph.model.named_buffers(remove_duplicate=False)}
    hooked = tuple(f"{name}." for name, m in graph.model.named_modules() if name and m._forward_pre_hooks)  # set weights anew
    for g in graph.groups:
        held = (m.name for m in g.members if m.name not in registered and not m.name.startswith(hooked))
        other = next(held, None)
        if g.name in elastic and other is not None:
            raise PlanError(
                f"{type(graph.model).__name__} holds {other}, a tensor over units of {g.name} that is neither parameter nor "
                "buffer: if a call has left it there, it would not follow the weights in training, so make the supernet of a "
                f"model that was not called before; if it is a constant, register it as a buffer, or ignore={g.name!r}"
            )
