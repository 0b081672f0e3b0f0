"""Write the folder of C: all files beside the target first, then one rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from bough.errors import WriteError
from bough.storage import make_folder

_ALWAYS = (
    "Makefile", "include/arm_nnfunctions.h", "kernels/bough_block.h", "kernels/bough_fixed_point.h", "kernels/bough_kernels.h",
    "kernels/bough_rows.h", "kernels/bough_window.h",
    "test/main.c", "test/platform.h", "test/host.c", "port/board.c", "port/board.ld",
)  # fmt: skip
_MARK = "model.json"  # a folder with this file was written by an export and may be replaced


def runtime_file(name: str) -> str:
    """Return the text of a file that every exported folder shares."""
    return (files("bough.exporting.embedded") / "runtime" / name).read_text(encoding="utf-8")


def write_folder(folder: Path, generated: Mapping[str, str], kernels: set[str], *, overwrite: bool = False) -> None:
    """Write generated and shared files as a new folder; after an error there is no folder, or the old one.

    Args:
        folder: the target.
        generated: texts by relative path.
        kernels: names of the C functions to include, each a file.
        overwrite: replace a folder that an earlier export wrote.

    Raises:
        WriteError: the folder exists (and may not be replaced), or can not be written.
    """
    if folder.exists() and not (overwrite and (folder / _MARK).is_file()):
        hint = "give overwrite=True" if (folder / _MARK).is_file() else "it was not written by bough's export"
        raise WriteError(f"{folder} exists: {hint}, or choose another folder")
    make_folder(folder.parent)
    texts = {name: runtime_file(name) for name in (*_ALWAYS, *(f"kernels/{k}.c" for k in sorted(kernels)))}
    part = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    old = part.with_suffix(".old")
    try:
        for name, text in {**texts, **generated}.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            with suppress(OSError):
                old.rename(folder)
        raise WriteError(f"{folder} can not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
