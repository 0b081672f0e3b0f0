"""The results of `benchmarks.after_cut` as a page: counts by use, and every use that does not work, with its cause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_HEAD = ("suite", "use", "works on the original", "works after the cut", "fails, stale attributes named", "fails, none named")


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each use, then what does not work."""
    rows: dict[tuple[str, str], list[int]] = {}
    for r in results:
        for use, kind, _ in judged(r):
            row = rows.setdefault((r["suite"], use), [0, 0, 0, 0])
            row[0] += 1
            row[1 + kind] += 1
    lines = [_HEAD, ["---"] * len(_HEAD), *([s, u, *map(str, row)] for (s, u), row in rows.items())]
    tried = [r for r in results if "after" in r]
    stale = [len(r["stale"]) for r in tried]
    names = [
        f"{len(tried)} models cut to half of the parameters; {sum(r['attributes'] for r in tried)} attributes were set, and "
        f"{sum(stale)} named as stale, in {sum(map(bool, stale))} models.\n"
    ]
    failures = [f"- {r['suite']}:{r['model']}: {use}: {what}" for r in results for use, kind, what in judged(r) if kind]
    others = [f"- {r['suite']}:{r['model']}: {_why(r)}" for r in results if _why(r)]
    page = ["# Uses of a model beside its forward, after a cut to half\n", *names, *(f"| {' | '.join(x)} |" for x in lines)]
    return "\n".join([*page, "\n## Not as on the original\n", *failures, "\n## Not tried\n", *others]) + "\n"


def judged(result: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield (use, 0: works, 1: fails and stale attributes are named, 2: fails, the cause) of what works on the original."""
    for use, before in result["before"].items() if "after" in result else ():
        if before == "works":
            after = result["after"][use]
            named = ", ".join(s["attribute"] for s in result["stale"][:3])
            yield use, 0 if after == "works" else 1 if named else 2, f"{after}{f' (named: {named})' if named else ''}"


def _why(result: dict[str, Any]) -> str:
    if "timeout_s" in result:
        return f"not done in {result['timeout_s']:g} s"
    return str(result.get("error") or result.get("not_cut") or "")
