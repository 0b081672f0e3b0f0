"""A lock on a run's folder: two runs in one folder would overwrite each other's state.

The operating system holds the lock and releases it when the process ends, however it ends. Children of the process
(DataLoader workers) do not inherit it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from bough.errors import BoughError, WriteError
from bough.storage.atomic import PARTS, explained, make_folder

LOCK = "run.lock"

_LOCKED: dict[Path, int] = {}
"""The folders that this process holds, and the process's number: a forked child has the entries and not the locks."""
_GUARD = threading.Lock()
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def exclusive(folder: Path | None, error: type[BoughError]) -> Iterator[None]:
    """Hold a folder, which is made if absent, for one run; with None there is nothing to hold.

    Temporary files that a killed run left in the folder are deleted.

    Args:
        folder: the run's folder.
        error: the class of the exception that is raised where another run holds the folder.

    Raises:
        BoughError: another run holds the folder (the message says which process, on which host, and since when), or the
            folder can not be made.
        WriteError: the folder can not be written.
    """
    if folder is None:
        yield
        return
    try:
        make_folder(folder)
    except WriteError as reason:
        raise error(f"{reason}: the run needs a folder, so give another one") from None
    place = folder.resolve()
    with _GUARD:
        if _LOCKED.get(place) == os.getpid():
            raise error(f"{folder} is in use by another run of this process: wait for it, or give another folder")
        descriptor = _acquired(place, folder, error)
        _LOCKED[place] = os.getpid()
    try:
        for part in place.glob(PARTS):
            part.unlink(missing_ok=True)
        yield
    finally:
        with _GUARD:
            del _LOCKED[place]
            with contextlib.suppress(OSError):
                (place / LOCK).unlink(missing_ok=True)  # while the lock is held, so that no other process holds this file
            os.close(descriptor)


def _acquired(place: Path, folder: Path, error: type[BoughError]) -> int:
    """The descriptor of the locked file, which says who holds it."""
    path = place / LOCK
    while True:
        with explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as reason:
            if reason.errno not in _UNSUPPORTED:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise error(f"{folder} is in use by {holder}: wait for it, or give another folder") from None
            warnings.warn(f"{folder} can not be locked ({reason.strerror}): run one process at a time in it", stacklevel=5)
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # whoever held it has deleted the file in the meantime
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}).encode())
    return descriptor


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 4096, os.SEEK_SET)  # behind the text, which others are to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 4096))
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, TypeError, KeyError, OSError):
        return "another process"
