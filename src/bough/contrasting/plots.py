"""Pictures: latency against kept work, and compression against speed-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bough.errors import ComparisonError
from bough.storage import write_files

if TYPE_CHECKING:
    from bough.contrasting.contrasted import Contrast
    from bough.contrasting.predictability import Predictability

_COLORS = {"dense": "black", "uniform": "#2f7d4f", "mixed": "#2b5fb5"}
_LABELS = {"macs": "MACs", "params": "parameters", "channels": "channels"}


def plot_predictability(found: Predictability, path: Path) -> None:
    """Draw the share of the latency against the share of each cost, with the fitted line; below, the residuals.

    Raises:
        ComparisonError: matplotlib is not installed.
    """
    figure = new_figure((4.2 * len(found.fits), 5.6))
    rows = figure.subplots(2, len(found.fits), sharex="col", sharey="row", height_ratios=(3, 1), squeeze=False)
    for (above, below), (cost, fit) in zip(zip(*rows, strict=True), found.fits.items(), strict=True):
        for kind, color in _COLORS.items():
            points = [(i, p) for i, p in enumerate(found.points) if p.kind == kind]
            x = [100 * getattr(p, cost) for _, p in points]
            above.plot(x, [100 * p.share for _, p in points], "o", color=color, markersize=4, label=kind)
            below.plot(x, [100 * fit.residuals[i] for i, _ in points], "o", color=color, markersize=4)
        above.plot([0, 100], [100 * fit.predict(s) for s in (0, 1)], "-", color="#b5542b", linewidth=1)
        above.plot([0, 100], [0, 100], ":", color="#8a8a8a", linewidth=1)
        overhead = f"; at 0: {100 * fit.intercept:.1f} %, {found.ops} ops' overhead" if cost == "macs" else ""
        above.set_title(f"R² {fit.r2:.4f}{overhead}", fontsize=9)
        below.axhline(0, color="#8a8a8a", linewidth=0.8)
        below.set_xlabel(f"{_LABELS[cost]} kept (%)")
        for axes in (above, below):
            axes.grid(alpha=0.25)
    rows[0][0].set_ylabel("latency (% of dense)")
    rows[1][0].set_ylabel("residual (points)")
    rows[0][0].legend(fontsize=8)
    figure.suptitle(f"{found.device}; {found.backend}; widths are multiples of {found.round_to}", fontsize=9)
    save_figure(figure, path)


def plot_contrast(found: Contrast, path: Path) -> None:
    """Draw compression (parameters over non-zeros) against measured speed-up with the 1:1 line; beside it, the metric.

    Each variant has a point per share and runtime: filled for dense kernels, open for the fastest sparse kernel.

    Raises:
        ComparisonError: matplotlib is not installed, or no variant could be made.
    """
    rows = [r for r in found.rows[1:] if r.error is None]
    if not rows:
        raise ComparisonError("there is nothing to plot: no variant could be made")
    figure = new_figure((11, 4.6))
    speed, quality = figure.subplots(1, 2)
    whole = found.dense.params
    names = list(dict.fromkeys(r.variant for r in rows))
    for name, color in zip(names, _cycle(len(names)), strict=True):
        points = sorted(((whole / r.nonzeros, r) for r in rows if r.variant == name and r.nonzeros), key=lambda p: p[0])
        x = [p for p, _ in points]
        speed.plot(x, [r.speedup["eager"] for _, r in points], "o-", color=color, markersize=5, linewidth=1, label=name)
        sparse = [(p, max(v for k, v in r.speedup.items() if k != "eager")) for p, r in points if len(r.speedup) > 1]
        if sparse:
            speed.plot(*zip(*sparse, strict=True), "o:", color=color, markersize=5, linewidth=1, markerfacecolor="white")
        quality.plot(x, [r.metric for _, r in points], "o-", color=color, markersize=5, linewidth=1, label=name)
    largest = max(whole / r.nonzeros for r in rows if r.nonzeros)
    speed.plot([1, largest], [1, largest], ":", color="#8a8a8a", linewidth=1.2, label="1:1")
    quality.axhline(found.dense.before or 0.0, color="black", linewidth=0.8, linestyle=(0, (6, 4)), label="dense")
    values = [r.metric for r in rows if r.metric is not None]
    if min(values) > 0 and max(values) > 50 * min(values):
        quality.set_yscale("log")
    speed.set_ylabel("measured speed-up (open: best sparse kernel)")
    quality.set_ylabel("metric")
    for axes in (speed, quality):
        axes.set_xlabel("compression: parameters / non-zeros")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(found.device, fontsize=9)
    save_figure(figure, path)


def _cycle(count: int) -> list[str]:
    colors = ("#2f7d4f", "#b5542b", "#2b5fb5", "#8a3fa0", "#c79a1e", "#1f8f9c", "#a02f4f", "#5b6b1e")
    return [colors[i % len(colors)] for i in range(count)]


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure.

    Raises:
        ComparisonError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ComparisonError("a plot needs matplotlib: pip install 'bough[train]'") from None
    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as the kind of file that the suffix names, PNG unless there is one."""
    write_files([(path, lambda part: figure.savefig(part, dpi=120, format=path.suffix[1:] or "png"))])
