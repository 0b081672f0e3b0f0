"""A file that is hashed and written by threads of their own, while the next bytes are read and cut."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType

WAITING = 6
"""Maximum number of contents that wait for a thread; each must stay unchanged until it is hashed and written."""

_SYNCED = 1 << 26  # bytes after which the file is synced: the disk writes all the time, and not only at the end


class WriteBehind:
    """Writes contents in order; use it in a `with` statement, at whose end everything is written and synced.

    What is on the disk is dropped from the system's cache, which is of more use for the files that are read.

    Args:
        file: open for writing, without a buffer.

    Raises:
        OSError: from `write` or the end of the `with` statement: the file can not be written.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._written = self._synced = 0
        self._threads = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: list[tuple[Future[None], ...]] = []

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self._wait(0)
            self._sync()

    def write(self, content: bytes | memoryview) -> None:
        """Write content behind what was given before; wait if too much is waiting."""
        self._wait(WAITING)
        hashing, writing = self._threads
        self._pending.append((hashing.submit(self._digest.update, content), writing.submit(self._write, content)))

    def hexdigest(self) -> str:
        """Return the sha256 of what was written; to be called after the `with` statement."""
        return self._digest.hexdigest()

    def _wait(self, left: int) -> None:
        """Wait until no more than `left` contents are waiting."""
        while len(self._pending) > left:
            for future in self._pending.pop(0):
                future.result()

    def _write(self, content: bytes | memoryview) -> None:
        left = memoryview(content)
        while left:
            count = self._file.write(left) or 0
            left, self._written = left[count:], self._written + count
        if self._written - self._synced >= _SYNCED:
            self._sync()

    def _sync(self) -> None:
        """Wait until everything is on the disk, and drop it from the system's cache."""
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._synced, self._written - self._synced, os.POSIX_FADV_DONTNEED)
        self._synced = self._written
