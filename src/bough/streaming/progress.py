"""A progress bar of bytes, with the rate and the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class ByteProgress:
    """Use it in a `with` statement: set `total`, then call `advance` with numbers of bytes."""

    def __init__(self, title: str, shown: bool) -> None:
        self._title, self._shown = title, shown
        self._bar: Any = None
        self._task: Any = None
        self._total = 0

    def __enter__(self) -> ByteProgress:
        if self._shown:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total = size
        if self._bar is not None:
            self._bar.update(self._task, total=size)

    def advance(self, size: int) -> None:
        """Add bytes that are done."""
        if self._bar is not None:
            self._bar.advance(self._task, size)
