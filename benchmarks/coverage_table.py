"""The results of the coverage benchmark as a page: counts by suite, and every case that is not perfect with its cause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.coverage_rules import BAD, perfect, settled

WAYS = {"keep": "half of every group", "params": "half of the parameters", "macs": "half of the MACs"}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one table for each tool, then what is not perfect."""
    ours = [r for r in results if r["tool"] == "bough"]
    theirs = [r for r in results if r["tool"] == "torch-pruning"]
    parts = ["# Coverage: models pruned to half\n"]
    if ours:
        parts += ["bough, with no hint:\n", _ours(ours)]
    if theirs:
        parts += ["Torch-Pruning, the better of two usages (see `benchmarks/torch_pruning.py`):\n", _theirs(theirs)]
    failures = [line for r in ours for line in causes(r)]
    parts += ["## Not perfect: bough\n", *(f"- {line}" for line in failures)]
    stopped = [line for r in theirs for line in _their_causes(r)]
    if stopped:
        parts += ["\n## Not equal: Torch-Pruning\n", *(f"- {line}" for line in stopped)]
    return "\n".join(parts) + "\n"


def markdown(head: list[str], rows: Iterable[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *([str(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _suites(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        by_suite.setdefault(r["suite"], []).append(r)
    return {**by_suite, "all": results}


def _ours(results: list[dict[str, Any]]) -> str:
    head = ["suite", "tried", "traced"]
    head += [f"{way}: {what}" for way in WAYS.values() for what in ("reached", "runs", "equal")]
    head += ["frozen by unknown op", "frozen by unaligned or stale", "perfect"]
    rows = []
    for suite, models in _suites(results).items():
        row: list[object] = [suite, len(models), sum(bool(r.get("traced")) for r in models)]
        for way in WAYS:
            cases = [settled(r["cases"][way]) for r in models if way in r.get("cases", {})]
            reached = [c for c in cases if "params" in c]
            row += [len(reached), sum(c["eval"] == "runs" and c["train"] != "fails" for c in reached)]
            row += [sum(bool(c.get("equal")) for c in reached)]
        bad = [" ".join(reason for *_, reason in r.get("bad_frozen", ())) for r in models]
        row += [sum(BAD[0] in b for b in bad), sum(any(x in b for x in BAD[1:]) for b in bad), sum(map(perfect, models))]
        rows.append(row)
    return markdown(head, rows)


def _theirs(results: list[dict[str, Any]]) -> str:
    rows = []
    for suite, models in _suites(results).items():
        best = [r.get("best", {}) for r in models]
        rows.append([suite, len(models), *(sum(bool(b.get(k)) for b in best) for k in ("traced", "runs", "equal"))])
    return markdown(["suite", "tried", "traced", "runs after pruning", "equal"], rows)


def causes(result: dict[str, Any]) -> list[str]:
    """A line for each thing that keeps a model from being perfect."""
    name, out = f"{result['suite']}:{result['model']}", []
    for key in ("not_built", "error"):
        if key in result:
            out.append(f"{name}: {key.replace('_', ' ')}: {result[key]}")
    if "timeout_s" in result:
        out.append(f"{name}: not done in {result['timeout_s']:g} s")
    if result.get("failed"):
        out.append(f"{name}: {result['failed']}: {result['cause']}")
    out += [f"{name}: unknown op {op} ({n} times)" for op, n in result.get("unknown_ops", {}).items()]
    out += [f"{name}: frozen: {group} ({units} units): {why}" for group, units, why in result.get("bad_frozen", ())[:3]]
    for way, case in result.get("cases", {}).items():
        at = f"{name}: {WAYS[way]}"
        if "unreachable" in case:
            out.append(f"{at}: {case['unreachable']}")
        elif "failed" in case:
            out.append(f"{at}: {case['failed']}: {case['cause']}")
        elif not case["equal"]:
            out.append(f"{at}: not equal: error {case['error']:.1e} of {case['scale']:.1e} ({case['dtype']})")
        if case.get("eval", "runs") != "runs":
            out.append(f"{at}: eval: {case['eval']}")
        if settled(case)["train"] == "fails" and "train" in case:
            out.append(f"{at}: train: {case['train']}")
    return out


def _their_causes(result: dict[str, Any]) -> list[str]:
    name, best = f"{result['suite']}:{result['model']}", result.get("best", {})
    if best.get("equal"):
        return []
    if "timeout_s" in result:
        return [f"{name}: not done in {result['timeout_s']:g} s"]
    return [f"{name}: {best.get('cause') or result.get('not_built') or result.get('error') or 'not equal'}"]
