"""`bough quantize`: a model, or its pruned form, in INT8 after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import bough
from bough.cli.calibration import batches
from bough.cli.models import pruned, resolve
from bough.cli.options import Json, Model, Shape, WeightsOf, chosen
from bough.cli.outputs import writable
from bough.cli.tasks import CONTRACT, task_of
from bough.errors import CheckpointError, ModelReferenceError
from bough.quantization import save_quantized
from bough.quantization.saved import PROGRAM


def quantize(
    model: Model,
    data: Annotated[str, typer.Argument(help="module:callable that returns batches, such as a DataLoader; no labels are used")],
    *,
    out: Annotated[Path, typer.Option(help="folder for the quantized program, for `bough export --quantized`")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to quantize in place of MODEL")
    ] = None,
    evaluate: Annotated[str | None, typer.Option(help=f"the metric before and after: {CONTRACT}")] = None,
    mixed: Annotated[
        str | None,
        typer.Option(help="keep layers in float until this holds: the largest loss of the metric, or a ratio such as '20 dB'"),
    ] = None,
    observer: Annotated[str | None, typer.Option(help="minmax, percentile or mse ranges; all are tried unless given")] = None,
    equalize: Annotated[bool | None, typer.Option(help="move scales between layers; tried unless given")] = None,
    correct_bias: Annotated[bool | None, typer.Option(help="take back the mean error of channels; tried unless given")] = None,
    reduce_range: Annotated[bool | None, typer.Option("--reduce-range", help="use 7 bits of the weights")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the quantized program that is in --out")] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to INT8 from unlabelled batches, and tell each layer's error."""
    writable(out, folder=True)
    if not overwrite and (out / PROGRAM).exists():
        raise CheckpointError(f"{out} has a quantized program already: give another --out, or --overwrite")
    metric = None if evaluate is None else task_of(evaluate).metric
    if evaluate is not None and metric is None:
        raise ModelReferenceError(f"--evaluate {evaluate} gives no validation data and no metric")
    given = resolve(model, input_shape, weights, quiet=as_json)
    small = given.model if checkpoint is None else pruned(given, checkpoint).model
    options = chosen(
        evaluate=metric, mixed=metric_limit(mixed), observer=observer, equalize=equalize, correct_bias=correct_bias,
        reduce_range=reduce_range,
    )  # fmt: skip
    done = bough.quantize(small, given.inputs, batches(data, progress=not as_json), **options)
    save_quantized(done, given.inputs, out, overwrite=True)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), "weights": given.weights.to_dict(), "saved": str(out)}))
    else:
        typer.echo(f"{done}\nsaved in {out}")


def metric_limit(mixed: str | None) -> float | str | None:
    """Return what `--mixed` says: a loss of the metric as a number, or a ratio such as "20 dB"."""
    try:
        return None if mixed is None else float(mixed)
    except ValueError:
        return mixed
