"""Check what a criterion returned, one of the user's included, before anything is planned by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import PlanError, instead
from bough.graph import Graph


def checked_scores(graph: Graph, given: Any, criterion: Any) -> dict[str, NDArray[np.float64]]:
    """Return the scores `given` by a criterion as float64 arrays by name.

    A criterion scores the units of every group, or whole layers (one number per entry of each list of layers); scores of ragged
    groups, [units of the other group, units], may come with those of groups.

    Raises:
        PlanError: something else; the message names the criterion and the group.
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if not isinstance(given, Mapping):
        raise PlanError(f"the criterion {name} returned {given!r:.40}: it must return {{group name: array [units]}}")
    shapes = _shapes(graph)
    for key in given:
        if key not in shapes:
            raise PlanError(f"the criterion {name} scores {key!r}, which is no group; {instead(str(key), shapes)}")
    groups = [g.name for g in graph.groups]
    missing = [n for n in groups if n not in given]
    if missing and (not given or any(n in given for n in groups)):
        raise PlanError(f"the criterion {name} gives no scores for the group {missing[0]!r}: it must score every group")
    return {key: _numbers(values, shapes[key], name, key) for key, values in given.items()}


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shape of the scores of all that can be scored: layers and lists of them, ragged groups, groups."""
    sizes = {g.name: g.size for g in graph.groups}
    lists = [x.container for x in graph.layers if x.container is not None]
    return {
        **{x.name: (1,) for x in graph.layers},
        **{name: (lists.count(name),) for name in lists},
        **{r.scores: (sizes[r.over], sizes[r.group]) for r in graph.ragged if r.over in sizes and r.group in sizes},
        **{name: (size,) for name, size in sizes.items()},
    }


def _numbers(values: Any, shape: tuple[int, ...], criterion: str, name: str) -> NDArray[np.float64]:
    """Return `values` as float64, or raise."""
    where = f"the criterion {criterion} gives {{}} for {name!r}: an array {list(shape)} of finite numbers is needed"
    try:
        found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError):  # lists of unequal lengths
        raise PlanError(where.format(f"a {type(values).__name__}")) from None
    if found.dtype.kind not in "biuf":
        raise PlanError(where.format(f"{values!r:.40}" if not found.shape else f"an array of {found.dtype}"))
    if found.shape != shape:
        raise PlanError(where.format(f"an array {list(found.shape)}"))
    if not np.isfinite(found).all():
        raise PlanError(where.format("NaN" if np.isnan(found).any() else "an infinite score"))
    return found.astype(np.float64, copy=False)
