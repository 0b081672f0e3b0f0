"""The progress of a search: a bar with the front below it, and the front as a file that is replaced after each trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bough.searching.result import SearchResult, table
from bough.storage import write_text

FRONT = "front.json"
_SHOWN = 8  # points of the front


def write_front(folder: Path, result: SearchResult) -> None:
    """Replace the folder's file of the front and all points."""
    write_text(folder / FRONT, json.dumps(result.to_dict(), indent=1) + "\n")


@contextmanager
def shown(result: Callable[[], SearchResult], trials: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """Give a function that shows the study as it is now; with `wanted` False it does nothing."""
    if not wanted:
        yield lambda: None
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    bar = Progress(TextColumn("search"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = bar.add_task("search", total=trials)
    with Live(bar, refresh_per_second=2, transient=True) as live:

        def update() -> None:
            now = result()
            bar.update(task, completed=len(now.points))
            lines = table(now.front, now.goals, now.dense, now.original, _SHOWN)
            live.update(Group(bar, Text("\n".join(lines), no_wrap=True)))

        yield update
