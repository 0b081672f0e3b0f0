"""Validation of the scores that a criterion returned, including criteria of the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bough.errors import PlanError, instead
from bough.graph import Graph


def check_scores(graph: Graph, scores: object, criterion: object) -> dict[str, NDArray[np.float64]]:
    """Return the scores of a criterion as float64 arrays by name.

    A criterion scores the units of every group, or whole layers (one number per entry of each list of layers). Scores of
    ragged groups, [units of the other group, units], may accompany those of groups.

    Args:
        graph: of the model.
        scores: as the criterion returned them.
        criterion: for messages.

    Raises:
        PlanError: the scores are incomplete, of another shape, or not finite; the message names the criterion and the group.
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if not isinstance(scores, Mapping):
        raise PlanError(f"the criterion {name} returned {scores!r:.40}: it must return {{group name: array [units]}}")
    shapes = _shapes(graph)
    for key in scores:
        if key not in shapes:
            raise PlanError(f"the criterion {name} scores {key!r}, which is no group; {instead(str(key), shapes)}")
    groups = [g.name for g in graph.groups]
    missing = [n for n in groups if n not in scores]
    if missing and (not scores or any(n in scores for n in groups)):
        raise PlanError(f"the criterion {name} gives no scores for the group {missing[0]!r}: it must score every group")
    return {key: _as_float64(values, shapes[key], name, key) for key, values in scores.items()}


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Return the shape of the scores of everything that can be scored: layers, lists of layers, ragged groups, groups."""
    sizes = {g.name: g.size for g in graph.groups}
    lists = [x.container for x in graph.layers if x.container is not None]
    return {
        **{x.name: (1,) for x in graph.layers},
        **{name: (lists.count(name),) for name in lists},
        **{r.scores: (sizes[r.over], sizes[r.group]) for r in graph.ragged if r.over in sizes and r.group in sizes},
        **{name: (size,) for name, size in sizes.items()},
    }


def _as_float64(values: Any, shape: tuple[int, ...], criterion: str, name: str) -> NDArray[np.float64]:
    """Return `values` as float64; raise PlanError if they are no finite numbers of this shape."""
    where = f"the criterion {criterion} gives {{}} for {name!r}: an array {list(shape)} of finite numbers is needed"
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError):  # lists of unequal lengths
        raise PlanError(where.format(f"a {type(values).__name__}")) from None
    if array.dtype.kind not in "biuf":
        raise PlanError(where.format(f"{values!r:.40}" if not array.shape else f"an array of {array.dtype}"))
    if array.shape != shape:
        raise PlanError(where.format(f"an array {list(array.shape)}"))
    if not np.isfinite(array).all():
        raise PlanError(where.format("NaN" if np.isnan(array).any() else "an infinite score"))
    return array.astype(np.float64, copy=False)
