"""`bough refit`: a pruned model's weights solved anew, from unlabelled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import bough
from bough.cli.calibration import batches
from bough.cli.models import pruned, resolve
from bough.cli.options import Checkpoint, Json, Original, Shape, writable
from bough.recovery import refit_


def refit(
    model: Original,
    data: Annotated[str, typer.Argument(help="module:callable that returns batches, such as a DataLoader; no labels are used")],
    *,
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder for the refitted checkpoint")],
    ridge: Annotated[float | None, typer.Option(help="how much weights are held back; without it, chosen for each")] = None,
    sites: Annotated[int, typer.Option(help="output positions of each sample that a convolution is looked at")] = 128,
    input_shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Solves a pruned model's weights for what the original computes, layer by layer: no labels, no training."""
    writable(out, folder=True)
    small, (dense, inputs) = pruned(model, checkpoint, input_shape), resolve(model, input_shape)
    stream = batches(data, progress=not as_json)
    done = refit_(dense, small.model, small.plan, stream, ridge=ridge, sites=sites, example_inputs=inputs)
    bough.save(small, out, overwrite=True)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), "saved": str(out)}))
    else:
        typer.echo(f"{done}\nsaved in {out}")
