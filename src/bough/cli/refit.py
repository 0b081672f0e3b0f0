"""`bough refit`: a pruned model's weights solved again, from unlabelled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import bough
from bough.cli.calibration import batches
from bough.cli.models import pruned, resolve
from bough.cli.options import Checkpoint, Json, Original, Overwrite, Shape, WeightsOf, chosen
from bough.cli.outputs import save, unused, writable
from bough.cli.processes import Distributed, join_processes
from bough.errors import PlanError
from bough.recovery import refit_


def refit(
    model: Original,
    data: Annotated[str, typer.Argument(help="module:callable that returns batches, such as a DataLoader; no labels are used")],
    *,
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder for the refitted checkpoint")],
    ridge: Annotated[float | None, typer.Option(help="how much weights are held back; without it, chosen for each")] = None,
    sites: Annotated[int | None, typer.Option(help="output positions of each sample that a convolution is looked at")] = None,
    everything: Annotated[bool | None, typer.Option(help="refit all weights whose inputs have changed")] = None,
    skips: Annotated[bool | None, typer.Option(help="make up for the error of what an output is added to")] = None,
    biases_only: Annotated[bool | None, typer.Option(help="solve for biases alone; weights stay (FLAP's compensation)")] = None,
    reconstruct: Annotated[
        int | None,
        typer.Option(help="afterwards train each block to give what the original's gives, for so many epochs", min=1),
    ] = None,
    reconstruct_rate: Annotated[float | None, typer.Option(help="of its steps, as a share of each weight's size")] = None,
    memory: Annotated[int | None, typer.Option(help="bytes that runs which wait for the next layer may hold")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    distributed: Distributed = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Solve a pruned model's weights for what the original computes, layer by layer and without labels."""
    processes = join_processes(distributed)
    writable(out, folder=True)
    unused(out, overwrite)
    if reconstruct is None and reconstruct_rate is not None:
        raise PlanError("--reconstruct-rate is of --reconstruct: give how many epochs, such as --reconstruct 10")
    if reconstruct is not None and distributed:
        raise PlanError("--reconstruct takes all batches in one process: leave --distributed out")
    options = chosen(
        ridge=ridge, sites=sites, everything=everything, skips=skips, biases_only=biases_only, memory=memory
    )  # fmt: skip
    dense = resolve(model, input_shape, weights, quiet=as_json or not processes.writes)
    small, stream = pruned(dense, checkpoint), batches(data, progress=not as_json)
    done = refit_(
        dense.model, small.model, small.plan, processes.share(stream) or stream, example_inputs=dense.inputs, **options
    )
    if not processes.writes:
        return
    trained = None
    if reconstruct is not None:
        trained = bough.recovery.reconstruct(
            dense.model, small.model, small.plan, stream, example_inputs=dense.inputs, progress=not as_json,
            **chosen(epochs=reconstruct, rate=reconstruct_rate),
        )  # fmt: skip
    message = save(small.model if trained is None else trained.model, small.plan, out, model)
    if as_json:
        blocks = {} if trained is None else {"reconstructed": trained.to_dict()}
        typer.echo(json.dumps({**done.to_dict(), **blocks, "weights": dense.weights.to_dict(), "saved": str(out)}))
    else:
        typer.echo("\n".join(str(part) for part in (done, trained, message) if part is not None))
