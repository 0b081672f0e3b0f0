"""`bough prune hf:PATH --stream`: a checkpoint pruned file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

import bough
from bough.cli.calibration import batches
from bough.cli.outputs import source_folder
from bough.cli.references import is_reference, with_options
from bough.errors import ModelReferenceError, PlanError
from bough.report.tables import costs_table, show

_TAKEN = ("round_to", "minimum", "drop", "exact_only", "uniform", "allocation", "importance", "data", "refit", "ignore", "only")


def prune_stream(
    model: str, budget: bough.Budget, out: Path | None, given: Mapping[str, Any], *, overwrite: bool, as_json: bool
) -> None:  # fmt: skip
    """Prune a checkpoint without loading it as a whole, and print what was cut.

    Args:
        model: the reference, hf:PATH.
        budget: what remains.
        out: the folder to write.
        given: {option: value} of all other options that were given.
        overwrite: whether to replace what is in `out`.
        as_json: whether to print JSON.

    Raises:
        ModelReferenceError: the reference is another one, or there is no `out`.
        PlanError: an option that needs the loaded model.
    """
    source = source_folder(model)
    if source is None:
        raise ModelReferenceError(f"--stream is for folders of transformers, hf:PATH: {model} is loaded as a whole")
    if out is None:
        raise ModelReferenceError("--stream writes files as it goes: give --out")
    wrong = [name for name, value in given.items() if name not in _TAKEN and value is not None]
    if wrong:
        flag = f"--{wrong[0].replace('_', '-')}"
        raise PlanError(f"{flag} needs the loaded model, which --stream never holds: leave out {flag} or --stream")
    options = {k: v for k, v in given.items() if k != "uniform" and v is not None}
    if is_reference(str(options.get("importance", ""))):
        options["importance"] = with_options(options["importance"])
    if "data" in options:
        options["data"] = batches(options["data"])
    result = bough.prune_checkpoint(source, budget, out, overwrite=overwrite, progress=not as_json, **options)
    if as_json:
        typer.echo(json.dumps({**result.to_dict(), "saved": str(out)}))
        return
    show(costs_table({"before": result.plan.original.to_dict(), "after": result.plan.cost.to_dict()}))
    for line in (*(f"cut: {n}: {k} of {size}" for n, (k, size) in result.plan.groups.items() if k < size), *result.plan.notes):
        typer.echo(line)
    if result.refit is not None:
        typer.echo(str(result.refit))
    for name in result.unknown:
        typer.echo(f"not written: {name}, which is no part of the model")
    typer.echo("not verified by numbers: the cut model was not run; names and shapes are those of the config")
    typer.echo(
        f"saved in {out}, which from_pretrained and bough load" + (" (an earlier run was continued)" if result.resumed else "")
    )
