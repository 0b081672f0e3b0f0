"""Where a study is kept, so that workers share it and a killed one does not stop it.

Each storage adds to Optuna's a lock around asking for a trial, and a way to know a dead worker. In a folder a worker holds a
file lock as long as it lives; in a database it records heartbeats.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

from bough.errors import SearchError, WriteError
from bough.searching.file_locks import FileLock
from bough.storage import exclusive, make_folder

MADE = "made"  # the user attribute of a trial whose worker and candidate are known
JOURNAL, WORKERS = "study.log", "workers"
_BLOCK = 65536
_ATTEMPTS, _PAUSE = 10, 0.5  # to make the tables that another worker is making, and the seconds between
_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("MySQLdb", "pymysql")}


class Storage(Protocol):
    """A study's storage."""

    @property
    def backend(self) -> BaseStorage:
        """Optuna's own storage."""

    def guard(self) -> AbstractContextManager[object]:
        """Hold the study: no other worker asks for a trial, or sweeps, at the same time."""

    def working(self) -> AbstractContextManager[str]:
        """Count as alive while inside; gives the worker's name."""

    def beating(self, trial_id: int) -> AbstractContextManager[object]:
        """Keep a running trial from being taken for that of a dead worker while inside."""

    def stale(self, study: optuna.Study, running: list[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the running trials whose workers are dead; called with the guard held."""


class Memory:
    """A study of this process alone."""

    def __init__(self) -> None:
        self.backend: BaseStorage = InMemoryStorage()
        self._lock = threading.Lock()

    def guard(self) -> AbstractContextManager[object]:
        return self._lock

    def working(self) -> AbstractContextManager[str]:
        return nullcontext(_worker_name())

    def beating(self, trial_id: int) -> AbstractContextManager[object]:
        return nullcontext()

    def stale(self, study: optuna.Study, running: list[FrozenTrial]) -> list[FrozenTrial]:
        return []


class Folder:
    """A study in a folder of one machine: Optuna's journal, with locks that end with their process.

    Raises:
        SearchError: the folder can not be made, or the journal in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            make_folder(folder / WORKERS)
        except WriteError as error:
            raise SearchError(f"{error}: give another folder") from None
        journal = folder / JOURNAL
        lock = _JournalLock(journal)
        lock.acquire()  # a line that was cut off is taken away before it is read
        lock.release()
        try:
            self.backend: BaseStorage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
        except (ValueError, KeyError, AssertionError) as error:
            raise SearchError(f"{journal} is damaged ({error}): give another folder") from None
        self._guard = FileLock(folder / "ask.lock")

    def guard(self) -> AbstractContextManager[object]:
        return self._guard

    @contextmanager
    def working(self) -> Iterator[str]:
        worker = _worker_name()
        with exclusive(self._folder / WORKERS / worker, SearchError):
            yield worker
        with suppress(OSError):
            (self._folder / WORKERS / worker).rmdir()

    def beating(self, trial_id: int) -> AbstractContextManager[object]:
        return nullcontext()

    def stale(self, study: optuna.Study, running: list[FrozenTrial]) -> list[FrozenTrial]:
        workers = {t.number: t.user_attrs[MADE]["worker"] for t in running if MADE in t.user_attrs}
        alive = {w: self._is_alive(w) for w in set(workers.values())}
        return [t for t in running if not (t.number in workers and alive[workers[t.number]])]

    def _is_alive(self, worker: str) -> bool:
        folder = self._folder / WORKERS / worker
        if not folder.is_dir():
            return False
        try:
            with exclusive(folder, SearchError):
                return False
        except SearchError:
            return True


class Database:
    """A study in PostgreSQL, MySQL or SQLite, with heartbeats.

    Args:
        url: as SQLAlchemy takes it, such as postgresql://user:password@host/name.
        interval: seconds between two heartbeats of a running trial; after three of them without one, its worker is dead.

    Raises:
        SearchError: the database can not be reached, its driver is not installed, or it is of another kind.
    """

    def __init__(self, url: str, interval: int) -> None:
        self._url = _with_driver(url)
        self.shown = _masked(url)
        self._interval = interval
        with self.explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                self._rdb = _connected(self._url, interval)
            except ImportError as error:
                raise SearchError(
                    f"storage={self.shown!r} needs a driver: {str(error).splitlines()[0]}. For PostgreSQL: pip install "
                    "'psycopg[binary]'; for MySQL: pip install pymysql"
                ) from error
        self.backend: BaseStorage = self._rdb
        self._file = None
        if self._rdb.engine.name == "sqlite":
            database = self._rdb.engine.url.database
            self._file = FileLock(Path(f"{database}.lock")) if database and database != ":memory:" else None

    def close(self) -> None:
        """Close the connections of this thread and the pool's."""
        self._rdb.remove_session()
        self._rdb.engine.dispose()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise a SearchError for errors of the connection."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise SearchError(
                f"storage={self.shown!r} can not be reached: {reason}. Check the address and that the server runs; the "
                "same call continues the study"
            ) from error

    @contextmanager
    def guard(self) -> Iterator[None]:
        kind = self._rdb.engine.name
        if kind == "sqlite":
            with self._file or nullcontext():
                yield
            return
        with self._rdb.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if kind == "postgresql":
                for setting in ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3"):
                    connection.execute(sqlalchemy.text(f"SET {setting}"))  # a lock ends when its machine is gone
                take, release = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
            else:
                take, release = "SELECT GET_LOCK(CAST(:key AS CHAR), 60)", "SELECT RELEASE_LOCK(CAST(:key AS CHAR))"
            key = {"key": int.from_bytes(sha256(b"bough.search").digest()[:4])}
            while connection.execute(sqlalchemy.text(take), key).scalar() in (0, None) and kind != "postgresql":
                continue  # MySQL takes a negative timeout for "wait", MariaDB for an error
            try:
                yield
            finally:
                with suppress(sqlalchemy.exc.SQLAlchemyError):
                    connection.execute(sqlalchemy.text(release), key)

    def working(self) -> AbstractContextManager[str]:
        return nullcontext(_worker_name())

    @contextmanager
    def beating(self, trial_id: int) -> Iterator[None]:
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._interval):
                with suppress(optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):  # the next may reach it
                    self._rdb.record_heartbeat(trial_id)
            self._rdb.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        self._rdb.record_heartbeat(trial_id)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stale(self, study: optuna.Study, running: list[FrozenTrial]) -> list[FrozenTrial]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        return [t for t in running if MADE not in t.user_attrs]


def _connected(url: str, interval: int) -> RDBStorage:
    """Connect to a database, and make Optuna's tables in it; again where another worker makes them at the same moment."""
    for _ in range(_ATTEMPTS):
        try:
            return RDBStorage(url, heartbeat_interval=interval, grace_period=3 * interval)
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError) as error:
            if not any(said in str(error).lower() for said in ("already exists", "duplicate")):
                raise
            time.sleep(_PAUSE)
    return RDBStorage(url, heartbeat_interval=interval, grace_period=3 * interval)


@contextmanager
def opened(given: str | Path | None, interval: int) -> Iterator[Storage]:
    """Give the storage that a folder's path or a database's address names; None is this process's memory.

    Args:
        given: path or address.
        interval: seconds between heartbeats in a database.

    Raises:
        SearchError: the storage can not be reached or used, also later, while inside.
    """
    if given is None:
        yield Memory()
    elif "://" not in str(given):
        yield Folder(Path(given))
    else:
        database = Database(str(given), interval)
        try:
            with database.explained():
                yield database
        finally:
            database.close()


class _JournalLock(JournalFileOpenLock):
    """The lock of a journal; a line that a killed writer left unfinished is taken away by the next one that holds the lock."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._lock = FileLock(journal.with_name(f"{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _drop_unfinished_line(self._journal)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_unfinished_line(journal: Path) -> None:
    if not journal.exists():
        return
    with open(journal, "r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _worker_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _with_driver(url: str) -> str:
    """Return the address with the driver that is installed, where it names none."""
    kind, _, rest = url.partition("://")
    if kind in _DRIVERS:
        usual, other = _DRIVERS[kind]
        if importlib.util.find_spec(usual) is None and importlib.util.find_spec(other) is not None:
            return f"{kind}+{other}://{rest}"
    elif kind.partition("+")[0] not in (*_DRIVERS, "sqlite"):
        raise SearchError(f"storage={_masked(url)!r}: use postgresql://, mysql:// or sqlite://, or the path of a folder")
    return url


def _masked(url: str) -> str:
    """Return an address without its password."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return f"{url.partition('://')[0]}://..."
