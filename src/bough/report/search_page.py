"""A self-contained HTML page of a search: the front as a picture against each cost that counts, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bough.graph import SECONDS_AND_JOULES, shown
from bough.report.labels import LABELS, number
from bough.report.page import STYLE
from bough.searching import SearchResult
from bough.searching.points import Point

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 300, 64, 40, 12  # of a picture and its margins, in pixels
_TICKS = 4
_STYLE = """
svg { max-width: 100%; } svg text { font-size: 11px; fill: #444; }
.candidate { fill: #8a8a8a; } .start { fill: #b5542b; } .front { fill: #2f7d4f; } .line { stroke: #2f7d4f; fill: none; }
.grid { stroke: #e4e7ec; } .dense { stroke: #222; stroke-dasharray: 6 4; }
"""


def search_page(title: str, found: SearchResult) -> str:
    """Return the page's HTML: pictures of the candidates with the front, the front's costs and origins, and all remarks.

    Args:
        title: of the page.
        found: result of a search; points at which a pointer rests show their numbers, metrics and origins.
    """
    metric, *others = found.goals.directions
    costs = [n for n in others if n in found.original] or ["macs"]
    costs += [n for n in ("latency", "peak_memory") if n in found.original and n not in costs]
    pictures = "".join(
        f"<h2>{escape(_label(metric))} against {escape(_label(cost))}</h2>{_picture(found, metric, cost)}" for cost in costs
    )
    remarks = "".join(f"<p>{escape(line)}</p>" for line in found.remarks())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>Grey: candidates; orange: one-shot plans, where the search starts; green: the front; "
        f"dashed: the dense model.</p>{pictures}<h2>The front</h2>{_table(found, costs)}{remarks}</html>\n"
    )


def _picture(found: SearchResult, metric: str, cost: str) -> str:
    """Return an SVG of the first objective against a cost."""
    points = [p for p in found.points if p.error is None and metric in {**p.cost, **p.metrics} and cost in p.cost]
    if not points:
        return "<p>No candidate was evaluated.</p>"
    x = _Scale([p.cost[cost] for p in points], _LEFT, _WIDTH - 8)
    known = [found.dense[metric]] if metric in found.dense else []
    y = _Scale([*(p.values[0] for p in points), *known], _HEIGHT - _BOTTOM, _TOP)
    front = sorted(found.front, key=lambda p: p.cost[cost])
    numbers = {p.number for p in front}
    grid = [
        f'<line class=grid x1="{_LEFT}" x2="{_WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}" />'
        f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>'
        for v in y.ticks()
    ]
    grid += [
        f'<text x="{x(v):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(_shown(cost, v))}</text>'
        for v in x.ticks()
    ]
    dense = [f'<line class=dense x1="{_LEFT}" x2="{_WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}" />' for v in known]
    line = " ".join(f"{x(p.cost[cost]):.1f},{y(p.values[0]):.1f}" for p in front)
    others = sorted(points, key=lambda p: (p.number in numbers, p.origin.startswith("start")))
    dots = [
        f'<circle class={_kind(p, numbers)} cx="{x(p.cost[cost]):.1f}" cy="{y(p.values[0]):.1f}" r="4">'
        f"<title>{escape(_said(p))}</title></circle>"
        for p in others
    ]
    axis = f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(_label(cost))}</text>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">'
        f'{"".join(grid)}{"".join(dense)}<polyline class=line points="{line}" />{"".join(dots)}{axis}</svg>'
    )


class _Scale:
    """Maps values to pixels, with a margin on both sides."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high, self.first, self.last = low - margin, high + margin, first, last

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * (i + 0.5) / _TICKS for i in range(_TICKS)]


def _table(found: SearchResult, costs: Sequence[str]) -> str:
    """Return the table of the front."""
    metrics, measured = list(found.dense), list(dict.fromkeys(name for p in found.front for name in p.measured))
    heads = ["point", *metrics, *map(_label, costs), *(f"measured {_label(name)}" for name in measured), "from"]
    rows = [["dense", *(f"{found.dense[m]:.6g}" for m in metrics), *(_shown(c, found.original[c]) for c in costs)]]
    rows[0] += [""] * (len(measured) + 1)
    for p in found.front:
        values = [_shown(name, p.measured[name]) if name in p.measured else "" for name in measured]
        kept = [f"{_shown(c, p.cost[c])} ({p.cost[c] / found.original[c]:.1%})" for c in costs]
        rows.append([str(p.number), *(f"{p.metrics[m]:.6g}" for m in metrics), *kept, *values, p.origin])
    head = "".join(f"<th class=n>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _kind(point: Point, front: set[int]) -> str:
    return "front" if point.number in front else "start" if point.origin.startswith("start") else "candidate"


def _said(point: Point) -> str:
    """Return what a picture shows of a point where the pointer rests."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in point.metrics.items())
    return f"{point.number}: {metrics}; {point.origin}"


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _shown(cost: str, value: float) -> str:
    return shown(cost, value) if cost in SECONDS_AND_JOULES else number(round(value))
