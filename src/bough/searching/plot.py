"""A search as a picture: every candidate, and the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bough.errors import SearchError
from bough.searching.goals import Goals
from bough.searching.points import Point
from bough.storage import write_files

_GREEN, _ORANGE, _GREY = "#2f7d4f", "#b5542b", "#8a8a8a"


def plot(
    path: Path, evaluated: Sequence[Point], front: Sequence[Point], goals: Goals, dense: Mapping[str, float],
    against: str | None = None,
) -> None:  # fmt: skip
    """Draw the first objective against a cost as a PNG: candidates in grey, start points in orange, the front in green.

    Args:
        path: of the picture.
        evaluated, front: points of a search.
        goals: objectives.
        dense: metrics of the dense model.
        against: a field of `Cost`, or a metric; unless given, the second objective, or the MACs.

    Raises:
        SearchError: matplotlib is missing, nothing succeeded, or `against` is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SearchError("a plot needs matplotlib: pip install 'bough[train]'") from None
    names = list(goals.directions)
    cost = against or (names[1] if len(names) > 1 else "macs")
    points = [p for p in evaluated if p.error is None]
    if not points or cost not in {**points[0].cost, **points[0].metrics}:
        known = ", ".join({**points[0].cost, **points[0].metrics}) if points else "none, since every candidate failed"
        raise SearchError(f"there is nothing to plot against {cost!r}: known are {known}")

    def at(which: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [{**p.cost, **p.metrics}[cost] for p in which], [p.values[0] for p in which]

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    starts = [p for p in points if p.origin.startswith("start")]
    axes.scatter(*at([p for p in points if p not in starts]), s=14, color=_GREY, label="candidates")
    axes.scatter(*at(starts), s=26, marker="^", color=_ORANGE, label="start points: one shot")
    line = sorted(front, key=lambda p: {**p.cost, **p.metrics}[cost])
    axes.plot(*at(line), color=_GREEN, marker="o", markersize=4, linewidth=1.4, label="front")
    if names[0] in dense:
        axes.axhline(dense[names[0]], color="black", linewidth=0.8, linestyle=(0, (6, 4)), label="dense")
    axes.set_xlabel(cost.replace("_", " "))
    axes.set_ylabel(names[0])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    write_files([(path, lambda part: figure.savefig(part, dpi=120, format=path.suffix[1:] or "png"))])
