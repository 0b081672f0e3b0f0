"""What a run leaves to look at: a log of JSON lines and a plot of its curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bough.errors import TrainingError
from bough.storage import append_line, write_files, write_text
from bough.storage.schema import Invalid, read_json


class Log:
    """A file of JSON lines; taken up again, it forgets what was written after `step`, or of epochs not ended by then."""

    def __init__(self, path: Path, step: int, epochs: int) -> None:
        self.path = path
        kept = [line for line in read_log(path) if (line["step"] <= step if "lr" in line else line["epoch"] < epochs)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, line: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(line))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off at the end is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = read_json(line)
        except Invalid:
            break
        if not isinstance(entry, dict) or not all(type(entry.get(k)) is int for k in ("step", "epoch")):  # what is left of one
            break
        found.append(entry)
    return found


def plot_curve(lines: list[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draws the loss over the steps, and the metric of each epoch where there is one, as a PNG.

    Raises:
        TrainingError: matplotlib is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainingError("a plot needs matplotlib: pip install 'bough[train]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [line for line in lines if "lr" in line]
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color="#2f7d4f", linewidth=1, label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title)
    measured = [line for line in lines if line.get("metric") is not None]
    if measured:
        other = axes.twinx()
        other.plot([m["step"] for m in measured], [m["metric"] for m in measured], "o-", color="#b5542b", markersize=3)
        other.set_ylabel("metric")
    write_files([(path, lambda part: figure.savefig(part, dpi=120, format="png"))])
