"""The log of a training run, a file of JSON lines, and a plot of its loss curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bough.errors import TrainingError
from bough.storage import append_line, write_files, write_text
from bough.storage.schema import Invalid, read_json


class RunLog:
    """A log file of JSON lines.

    Args:
        path: of the file. Lines of a killed run that come after the state it is resumed from are removed.
        step: optimizer steps of that state.
        epochs: finished epochs of that state.
    """

    def __init__(self, path: Path, step: int, epochs: int) -> None:
        self.path = path
        valid = [line for line in read_log(path) if (line["step"] <= step if "lr" in line else line["epoch"] < epochs)]
        write_text(path, "".join(json.dumps(line) + "\n" for line in valid))

    def __call__(self, line: dict[str, Any]) -> None:
        """Append a line."""
        append_line(self.path, json.dumps(line))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, up to the first that is damaged or incomplete; none if there is no file."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = read_json(text)
        except Invalid:
            break
        if not isinstance(line, dict) or not all(type(line.get(k)) is int for k in ("step", "epoch")):
            break  # the valid beginning of an incomplete line
        lines.append(line)
    return lines


def plot_curve(lines: list[dict[str, Any]], path: Path, title: str = "") -> None:
    """Plot the loss over the steps, and the metric of each epoch if there is one, to a PNG file.

    Args:
        lines: of a log, as `read_log` returns them.
        path: of the file, which is replaced.
        title: of the plot.

    Raises:
        TrainingError: matplotlib is not installed.
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
        metric_axes = axes.twinx()
        metric_axes.plot([m["step"] for m in measured], [m["metric"] for m in measured], "o-", color="#b5542b", markersize=3)
        metric_axes.set_ylabel("metric")
    write_files([(path, lambda part: figure.savefig(part, dpi=120, format="png"))])
