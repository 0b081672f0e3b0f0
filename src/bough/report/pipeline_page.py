"""A self-contained HTML page of a pipeline: a row for each stage, the widths that the cut left, and what each stage reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bough.planning import Plan
from bough.report.labels import LABELS, number
from bough.report.page import STYLE, widths_table

_COSTS = ("params", "macs", "size")


def pipeline_page(title: str, stages: Sequence[Mapping[str, Any]], plan: Plan | None) -> str:
    """Return the page's HTML.

    Args:
        title: of the page.
        stages: records of the stages as plain values: {"name", "seconds", "metric", "cost", "details"}.
        plan: of the cut; None without one.
    """
    heads = "".join(f"<th class=n>{escape(h)}</th>" for h in ("metric", *(LABELS[k] for k in _COSTS), "seconds"))
    rows = "".join(_row(i, stage) for i, stage in enumerate(stages))
    details = "".join(
        f"<details><summary>{i} {escape(stage['name'])}</summary><pre>{escape(json.dumps(stage['details'], indent=1))}</pre>"
        "</details>"
        for i, stage in enumerate(stages)
        if stage["details"]
    )
    widths = "" if plan is None else widths_table(plan)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><table><tr><th></th><th>stage</th>{heads}</tr>{rows}</table>{widths}"
        f"<h2>What each stage reports</h2>{details}</html>\n"
    )


def _row(index: int, stage: Mapping[str, Any]) -> str:
    metric = "" if stage["metric"] is None else f"{stage['metric']:.6g}"
    costs = (number(stage["cost"][k]) if k in stage["cost"] else "" for k in _COSTS)
    values = (metric, *costs, f"{stage['seconds']:.1f}")
    file = stage["details"].get("file")
    name = escape(stage["name"]) + ("" if file is None else f' <a href="{escape(file)}">{escape(file)}</a>')
    return f"<tr><td>{index}</td><td>{name}</td>{''.join(f'<td class=n>{escape(v)}</td>' for v in values)}</tr>"
