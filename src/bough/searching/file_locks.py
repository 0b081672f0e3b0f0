"""Locks between processes of one machine, held by the operating system: they end with the process, however it ends."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

from bough.errors import SearchError

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

_THREADS: defaultdict[tuple[int, Path], threading.Lock] = defaultdict(threading.Lock)
"""POSIX locks do not exclude threads of one process from each other: one lock per process and path does."""


class FileLock:
    """A lock that `acquire` waits for; also a context manager.

    POSIX record locks are used, which forked children do not inherit: DataLoader workers that outlive a killed process do not
    hold its locks.
    """

    def __init__(self, path: Path) -> None:
        if fcntl is None:  # pragma: no cover
            raise SearchError(
                "a study in a folder needs POSIX file locks: use storage='postgresql://...' or 'mysql://...' here"
            )
        self._path = path.resolve()
        self._descriptor = -1

    def acquire(self) -> bool:
        """Wait for the lock."""
        _THREADS[os.getpid(), self._path].acquire()
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Release the lock; the file stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        _THREADS[os.getpid(), self._path].release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
