"""A file that is hashed and written by a thread of its own, while the next bytes are read and cut."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType

WAITING = 2
"""Maximum number of contents that wait for the thread; each must stay unchanged until it is written."""


class WriteBehind:
    """Writes contents in order; use it in a `with` statement, at whose end everything is written.

    Args:
        file: open for writing, without a buffer.

    Raises:
        OSError: from `write` or the end of the `with` statement: the file can not be written.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()

    def write(self, content: bytes | memoryview) -> None:
        """Write content behind what was given before; wait if too much is waiting."""
        while len(self._pending) > WAITING:
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(self._write, content))

    def hexdigest(self) -> str:
        """Return the sha256 of what was written; to be called after the `with` statement."""
        return self._digest.hexdigest()

    def _write(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) or 0 :]
