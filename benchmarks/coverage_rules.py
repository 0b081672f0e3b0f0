"""When a model counts as covered."""

from __future__ import annotations

from typing import Any

# a group frozen for one of these is one that should have been free
BAD = ("unknown op", "no common refinement", "unaligned", "stale integer", "contradict")


def perfect(result: dict[str, Any]) -> bool:
    """Traced with nothing unknown or unaligned, and each of the three ways reached, running and equal."""
    return not (result.get("unknown_ops") or result.get("bad_frozen") or "cases" not in result) and all(
        case.get("equal") and case["eval"] == "runs" and case["train"] != "fails" and case["scale"] > 0
        for case in map(settled, result["cases"].values())
    )


def settled(case: dict[str, Any]) -> dict[str, Any]:
    """A case whose `train` is "runs", "fails" or "the original does not run"."""
    train = case.get("train", "fails")
    return {"eval": "-", "scale": 0, **case, "train": train if train in ("runs", "the original does not run") else "fails"}
