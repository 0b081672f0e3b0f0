"""Where results go: tried before the work is done, so that no work is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

import bough
from bough.errors import CheckpointError
from bough.exporting.checkpoint import refuse_checkpoint
from bough.planning import config_mismatch
from bough.tracing.capture.wrapped import unwrap

_TRIED = 4096  # bytes: a full disk has no room for them


def writable(out: Path | None, *, folder: bool) -> None:
    """Raise an error if a file, or files in a folder that may have to be made, can not be written; leave nothing behind.

    Raises:
        CheckpointError: a file stands where a folder is to be made, there is no folder for a file, the folder is not the
            user's to write in, or the disk is full.
    """
    if out is None:
        return
    in_the_way = next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None)
    if folder and in_the_way:
        raise CheckpointError(f"{out} can not be a folder: there is a file in the way, {in_the_way}")
    if not folder and (out.is_dir() or not out.parent.is_dir()):
        problem = f"{out.name} is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise CheckpointError(f"{out} can not be written: {problem}")
    there = next(p for p in ((out, *out.parents) if folder else out.parents) if p.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".bough-") as tried:
            tried.write(bytes(_TRIED))
            tried.flush()
    except OSError as error:
        raise CheckpointError(f"{out} can not be written: {error.strerror or error}, in {there}") from None


def unused(out: Path | None, overwrite: bool, *, run: str | None = None) -> None:
    """Raise an error if a folder holds a checkpoint already; `run`: the file that marks it as of the run to be resumed.

    Raises:
        CheckpointError: it does, and `overwrite` is not given.
    """
    resumed = run is not None and out is not None and (out / run).is_file()
    if out is not None and not overwrite and not resumed:
        refuse_checkpoint(out)


def source_folder(reference: str) -> Path | None:
    """Return the folder of a reference hf:PATH; None of others."""
    kind, _, path = reference.partition(":")
    return Path(path) if kind == "hf" else None


def save(model: nn.Module, plan: bough.Plan, out: Path, reference: str, **storing: Any) -> str:
    """Save a cut model, in place of what is in `out`, and return what is to be said of it.

    A model of hf:PATH whose config can express the cut becomes a folder that `from_pretrained` loads; others, and weights in a
    format of sparse weights (`storing`: `format` and `compress` of `bough.save`), become a checkpoint of bough.
    """
    source = source_folder(reference)
    if source is None or plan.rebuild or storing:
        bough.save(model, plan, out, overwrite=True, **storing)
        return f"saved in {out}"
    why = config_mismatch(unwrap(model))
    if why is None:
        bough.save_pretrained(model, plan, out, source=source, overwrite=True)
        return f"saved in {out}, which from_pretrained and bough load"
    bough.save(model, plan, out, overwrite=True)
    return (
        f"saved in {out}, which bough.load loads and from_pretrained does not: the config can not express the plan ({why}); "
        "with --uniform it can"
    )
