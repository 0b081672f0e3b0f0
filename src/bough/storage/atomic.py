"""Atomic writes: a file has its old content or its new content, whole and synced to the disk; never a part of either."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from bough.errors import WriteError

PARTS = ".*.part"
"""The names of temporary files, which stand beside the files that they will replace."""

Write = Callable[[Path], object]


def write_files(files: Sequence[tuple[Path, Write]]) -> None:
    """Write several files, then put all of them in place; after an error none is changed and no temporary file is left.

    Args:
        files: (path, function) pairs; the function writes the whole content into the temporary path that it is given. The
            functions run in this order, and the files are renamed in this order once all are on the disk.

    Permissions are those of any new file (0666 less the umask), whatever the function does.

    Raises:
        WriteError: a file can not be written, such as on a full disk.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for path, write in files:
            part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
            with explained(path):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))  # a rename would fail after others
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                mode = part.stat().st_mode & 0o777
                written.append((part, path))
                write(part)
                part.chmod(mode)
                sync(part)
        for part, path in written:
            with explained(path):
                part.replace(path)
        for folder in {path.parent for path, _ in files}:
            with explained(folder):
                sync(folder)
    finally:
        for part, _ in written:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write one text file in UTF-8; see `write_files`."""
    write_files([(path, lambda part: part.write_text(text, encoding="utf-8"))])


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; after an error the file is as it was.

    Raises:
        WriteError: the file can not be written.
    """
    left = memoryview(f"{line}\n".encode())
    with explained(path), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it exists.

    Raises:
        WriteError: there is a file in the way, or the folder can not be made.
    """
    blocking = next((p for p in (folder, *folder.parents) if p.is_file()), None)
    if blocking is not None:
        raise WriteError(f"{folder} can not be made: {blocking} is a file")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise a WriteError that names the path for whatever the system or safetensors reports."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise WriteError(f"{path} can not be written: {reason}") from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Windows has no such call for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a text file that `append_line` wrote; none if it does not exist.

    A last line that a killed process left unfinished is taken out of the file: the next one starts on a line of its own.
    """
    if not path.exists():
        return []
    content = path.read_text(encoding="utf-8", errors="replace")
    complete, newline, _ = content.rpartition("\n")
    if content != complete + newline:
        write_text(path, complete + newline)
    return complete.splitlines()
