"""A self-contained HTML page: costs before and after, and the width of every group as bars."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from bough.planning import Plan
from bough.report.labels import LABELS, number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { position: relative; height: 1rem; background: #e4e7ec; width: 22rem; }
.bar span { position: absolute; inset: 0 auto 0 0; background: #2f7d4f; }
"""


def page(title: str, rows: Mapping[str, Mapping[str, Any]], plan: Plan, notes: list[str]) -> str:
    """The page's HTML; `rows` are two models' costs, before and after."""
    (before, first), (after, second) = rows.items()
    costs = "".join(
        f"<tr><td>{escape(LABELS.get(k, k))}</td><td class=n>{number(first[k])}</td><td class=n>{number(second[k])}</td>"
        f"<td class=n>{second[k] / first[k]:.3f}</td></tr>"
        for k in first
        if first[k]
    )
    remarks = "".join(f"<p>{escape(n)}</p>" for n in notes)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><table><tr><th></th><th class=n>{escape(before)}</th><th class=n>{escape(after)}</th>"
        f"<th class=n>ratio</th></tr>{costs}</table>{remarks}{widths_table(plan)}</html>\n"
    )


def widths_table(plan: Plan) -> str:
    """Return the width of every group before and after as a heading and a table with bars."""
    widest = max((total for _, total in plan.groups.values()), default=1)
    widths = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{total}</td><td class=n>{kept}</td>"
        f'<td><div class=bar style="width:{22 * total / widest:.2f}rem"><span style="width:{100 * kept / total:.1f}%">'
        "</span></div></td></tr>"
        for name, (kept, total) in plan.groups.items()
    )
    return (
        "<h2>Widths, before and after</h2><table><tr><th>group</th><th class=n>before</th><th class=n>after</th><th></th></tr>"
        f"{widths}</table>"
    )
