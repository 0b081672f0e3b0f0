"""Checks that weights have values and that these are finite."""

from __future__ import annotations

from torch import Tensor

from bough.errors import PlanError
from bough.graph import Graph


def check_weights(graph: Graph, checked_later: frozenset[str]) -> None:
    """Check that the parameters of all groups have values, and finite ones.

    Args:
        graph: of the model.
        checked_later: names of parameters that are only checked for whether they have values.

    Raises:
        PlanError: a parameter is on the meta device, or holds NaN or infinity.
    """
    for name in dict.fromkeys(m.name for g in graph.groups for m in g.members if graph.states[m.name].parameter):
        tensor = graph.tensor(name)
        if tensor.is_meta:
            raise PlanError(f"{name} has a shape and no values (device meta), and there is nothing to score: load the weights")
        if name not in checked_later:
            check_finite(name, tensor.detach())


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise PlanError if the parameter `name` holds NaN or infinity; the cost is that of a sum."""
    if not (tensor.sum().isfinite() or tensor.isfinite().all()):  # a sum of finite values may overflow
        raise PlanError(f"{name} is not finite: it holds NaN or infinity, and scores would mean nothing")
