"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bough.comparing.rows import Line
from bough.comparing.table import is_random
from bough.errors import ComparisonError
from bough.storage import write_files

if TYPE_CHECKING:
    from bough.comparing.comparison import Comparison

_COLORS = ("#2f7d4f", "#b5542b", "#2b5fb5", "#8a3fa0", "#c79a1e", "#1f8f9c", "#a02f4f", "#5b6b1e", "#6a4a2f", "#d06fa8")
_STYLES = ("-", "--", ":", "-.")
_GREY = "#8a8a8a"
_LABELS = {"params": "parameters", "macs": "MACs", "peak_memory": "peak memory", "stored": "size as stored"}


def plot(comparison: Comparison, path: Path, against: str | None = None) -> None:
    """Draws the first metric against the share of a cost that is kept, as a PNG.

    A color per criterion, a style of line per allocation, a point per budget; where there are several seeds, their mean and
    a band from the lowest to the highest; Random in grey.

    Args:
        against: a field of `Cost`, such as "macs"; unless given, what the first budget bounds.

    Raises:
        ComparisonError: matplotlib is not there, nothing succeeded, or no such cost is known.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ComparisonError("a plot needs matplotlib: pip install 'bough[train]'") from None
    cost = against or _bounded(comparison)
    good = [x for x in comparison.lines if x.good]
    if not good or any(cost not in r.kept for x in good for r in x.good):
        known = ", ".join(good[0].good[0].kept) if good else "none, since every row failed"
        raise ComparisonError(f"there is nothing to plot against {cost!r}: the costs known are {known}")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    dense = comparison.dense.metrics[comparison.metric]
    axes.axhline(dense, color="black", linewidth=0.8, linestyle=(0, (6, 4)), label="dense")
    for (criterion, allocation), curve in _curves(comparison).items():
        _draw(axes, curve, comparison.metric, cost, f"{criterion}, {allocation}", *_look(comparison, curve[0]))
    axes.set_xlabel(f"{_LABELS.get(cost, cost)} kept (%)")
    axes.set_ylabel(comparison.metric)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", handlelength=3, bbox_to_anchor=(1.0, 0.5))
    write_files([(Path(path), lambda part: figure.savefig(part, dpi=120, format=Path(path).suffix[1:] or "png"))])


def _bounded(comparison: Comparison) -> str:
    """The cost that the first budget bounds; of a size at a precision, the size as stored."""
    first = next(r for r in comparison.rows if r.budget)
    field = first.budget.partition("=")[0]
    return "stored" if field == "size" and "precision=" in first.budget else field


def _curves(comparison: Comparison) -> dict[tuple[str, str], list[Line]]:
    """The lines of each criterion and allocation, in the order of the rows; those under Random first, so drawn below."""
    order = {(r.criterion, r.allocation): i for i, r in reversed(list(enumerate(comparison.rows)))}
    found: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(comparison.lines, key=lambda x: (not is_random(x), order[x.criterion, x.allocation])):
        if line.good:
            found.setdefault((line.criterion, line.allocation), []).append(line)
    return found


def _look(comparison: Comparison, line: Line) -> tuple[str, str]:
    """Color and style."""
    criteria = list(dict.fromkeys(x.criterion for x in comparison.rows[1:]))
    allocations = list(dict.fromkeys(x.allocation for x in comparison.rows[1:]))
    color = _GREY if is_random(line) else _COLORS[criteria.index(line.criterion) % len(_COLORS)]
    return color, _STYLES[allocations.index(line.allocation) % len(_STYLES)]


def _draw(axes: Any, curve: Sequence[Line], metric: str, cost: str, label: str, color: str, style: str) -> None:
    points = sorted((100 * fmean(r.kept[cost] for r in x.good), x.values(metric)) for x in curve)
    shares, values = [p[0] for p in points], [p[1] for p in points]
    means, low, high = [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values]
    axes.plot(shares, means, style, color=color, marker="o", markersize=4, linewidth=1.4, label=label)
    if low != high:
        axes.fill_between(shares, low, high, color=color, alpha=0.18, linewidth=0)
        axes.vlines(shares, low, high, color=color, linewidth=1, alpha=0.5)  # a single budget makes no band
