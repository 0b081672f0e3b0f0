"""A comparison as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bough.comparing.rows import Line

if TYPE_CHECKING:
    from bough.comparing.comparison import Comparison

_USUAL, _PRICED = ("params", "macs", "size"), ("stored", "flash", "latency", "energy")


def table(comparison: Comparison) -> str:
    """A line per criterion, allocation and budget, the best first; then the errors, and what the plans have to say.

    Of several seeds the mean is shown, and from the lowest to the highest. "vs random": by how much the first metric is above
    the mean of Random with the same allocation and budget.
    """
    metrics, costs = list(comparison.dense.metrics), _costs(comparison)
    heads = ["criterion", "allocation", "budget", *(f"{c} kept" for c in costs), *metrics, "vs random", "score s", "plan s"]
    chance = {(x.allocation, x.budget): x.metric(metrics[0]) for x in comparison.lines if is_random(x)}
    rows = [_cells(x, costs, metrics, chance.get((x.allocation, x.budget))) for x in comparison.lines]
    dense = [_value(v) for v in comparison.dense.metrics.values()]
    cells = [heads, ["dense", "", "", *("100.0%" for _ in costs), *dense, "", "", ""], *rows]
    return "\n".join([*_aligned(cells, left=3), *_remarks(comparison)])


def _costs(comparison: Comparison) -> list[str]:
    known = {c for r in comparison.rows for c in r.kept}
    memory = [c for c in ("peak_memory",) if any(c in r.budget for r in comparison.rows)]
    return [*_USUAL, *memory, *(c for c in _PRICED if c in known)]


def is_random(line: Line) -> bool:
    """Whether it is the control: Random, by name or as a criterion."""
    return line.criterion == "random" or line.criterion.startswith("Random(")


def _cells(line: Line, costs: Sequence[str], metrics: Sequence[str], chance: float | None) -> list[str]:
    names = [line.criterion, line.allocation, line.budget]
    seconds = [_mean([r.seconds.get(stage) for r in line.rows]) for stage in ("score", "plan")]
    if not line.good:
        return [*names, *("" for _ in costs), "failed", *("" for _ in metrics[1:]), "", *seconds]
    kept = [f"{line.kept(c):.1%}" for c in costs]
    value = line.metric(metrics[0])
    against = "" if chance is None or value is None or is_random(line) else f"{value - chance:+.4g}"
    return [*names, *kept, *(_spread(line, m) for m in metrics), against, *seconds]


def _spread(line: Line, metric: str) -> str:
    values = line.values(metric)
    mean = _value(sum(values) / len(values))
    return mean if min(values) == max(values) else f"{mean} ({_value(min(values))} to {_value(max(values))})"


def _value(value: float) -> str:
    return f"{value:.4g}"


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.2g}" if known else ""


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _remarks(comparison: Comparison) -> list[str]:
    """Each error and each note once, with the rows it is of."""
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        name = ", ".join(str(x) for x in (*row.key[:3], *(() if row.seed is None else (f"seed {row.seed}",))) if x)
        for text in (*(() if row.error is None else (f"failed: {row.error}",)), *row.notes):
            found.setdefault(text, []).append(name)
    return [f"{text} [{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}]" for text, names in found.items()]
