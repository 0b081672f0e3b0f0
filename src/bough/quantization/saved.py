"""Quantized programs on the disk: the program as torch.export saves it, and what is known of it as JSON."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import fx

from bough.calls import as_calls
from bough.errors import CheckpointError
from bough.quantization.program import batch_that_varies, plain
from bough.quantization.quantized import Quantized
from bough.quantization.torchao_import import require_torchao
from bough.storage import file_digest, make_folder, write_files

PROGRAM, REPORT = "quantized.pt2", "quantized.json"


def save_quantized(
    quantized: Quantized, example_inputs: Any, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a quantized program, and its errors, into a folder, and return the folder's path.

    Args:
        quantized: what `quantize` gave.
        example_inputs: as for `quantize`.
        folder: where to; made if absent.
        overwrite: replace a program that is in the folder.

    Raises:
        CheckpointError: the folder has a quantized program already.
        WriteError: a file can not be written.

    Example:
        >>> import tempfile, torch, bough
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval(), torch.randn(64, 4)
        >>> done = bough.quantize(net, x[:1], x.split(32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(p.suffix for p in save_quantized(done, x[:1], folder).iterdir())
        ['.json', '.pt2']
    """
    place = Path(folder)
    if not overwrite and (place / PROGRAM).exists():
        raise CheckpointError(f"{place} has a quantized program already: save into another folder, or with overwrite=True")
    call = as_calls(example_inputs)[0]
    inputs, shapes = batch_that_varies((call.args, call.kwargs))
    with torch.no_grad():
        program = torch.export.export(quantized.model, *inputs, dynamic_shapes=shapes, strict=False)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    report = quantized.to_dict()

    def write_program(part: Path) -> None:
        part.write_bytes(stored.getvalue())
        report["sha256"] = file_digest(part)

    make_folder(place)
    write_files(
        [(place / PROGRAM, write_program), (place / REPORT, lambda part: part.write_text(json.dumps(report), encoding="utf-8"))]
    )
    return place


def load_quantized(folder: str | os.PathLike[str]) -> fx.GraphModule:
    """Return the program that `save_quantized` wrote, called as the model was; it needs no code of the model.

    Args:
        folder: as written by `save_quantized`.

    Raises:
        CheckpointError: a file is missing or damaged, or torchao is not installed.

    Example:
        >>> import tempfile, torch, bough
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval(), torch.randn(64, 4)
        >>> done = bough.quantize(net, x[:1], x.split(32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = bough.quantization.save_quantized(done, x[:1], folder)
        ...     program = load_quantized(folder)
        >>> torch.equal(program(x[:1]), done.model(x[:1]))
        True
    """
    place = Path(folder)
    require_torchao("loading a quantized program", CheckpointError)
    try:
        report = json.loads((place / REPORT).read_text(encoding="utf-8"))
        stored = (place / PROGRAM).read_bytes()
        digest = file_digest(place / PROGRAM)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place} holds no whole quantized program: {error}") from None
    if report.get("sha256") != digest:
        raise CheckpointError(f"{place / PROGRAM} is damaged: its checksum is not that in {REPORT}")
    return plain(torch.export.load(io.BytesIO(stored)).module(check_guards=False))
