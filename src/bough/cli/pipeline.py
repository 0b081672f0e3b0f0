"""`bough pipeline`: stages from training to exported files, described by a TOML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bough.cli.options import Json
from bough.cli.outputs import writable
from bough.cli.pipeline_file import read_pipeline


def pipeline(
    file: Annotated[Path, typer.Argument(help="TOML: model, task, data and a table [[stage]] for each stage")],
    *,
    out: Annotated[Path, typer.Option(help="folder for the run, its report and the exported files; a run in it is resumed")],
    as_json: Json = False,
) -> None:
    """Train, prune, refit, distill, quantize and export as one run in one folder, with one report; a killed run goes on."""
    writable(out, folder=True)
    made, given = read_pipeline(file, quiet=as_json)
    done = made.run(out, progress=not as_json)
    typer.echo(json.dumps({**done.to_dict(), "weights": given.weights.to_dict()}) if as_json else str(done))
