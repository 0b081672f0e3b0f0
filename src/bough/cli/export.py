"""`bough export`: a model, or its pruned form, as an ONNX or ExecuTorch file that was run and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

import bough
from bough.cli.calibration import batches
from bough.cli.models import pruned, resolve
from bough.cli.options import Json, Model, Shape, WeightsOf, chosen
from bough.cli.outputs import writable
from bough.errors import ModelReferenceError
from bough.quantization import load_quantized


def export(
    model: Model,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="the file: its ending, .onnx, .pte (ExecuTorch) or .tflite (LiteRT), is the format; or a folder of C"
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to export in place of MODEL")
    ] = None,
    quantized: Annotated[
        Path | None, typer.Option(help="a folder that `bough quantize --out` wrote, for a file in INT8")
    ] = None,
    dynamic_batch: Annotated[bool | None, typer.Option("--dynamic-batch", help="let the size of the batch vary")] = None,
    dynamic_shapes: Annotated[
        list[str] | None,
        typer.Option(help="dims of an input that may vary, as in input_ids=0:batch,1:sequence; may be repeated"),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="largest difference to the model that is accepted, as a share of the output's range")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="timed runs at most", min=0)] = None,
    target: Annotated[str | None, typer.Option(help="cortex-m: write C for microcontrollers into the folder --out")] = None,
    data: Annotated[
        str | None, typer.Option(help="module:callable that returns batches: they decide scales and zero points of the C code")
    ] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="replace --out")] = None,
    as_json: Json = False,
) -> None:
    """Write a model as a file for onnxruntime or ExecuTorch, run and compared with the model; or as C for microcontrollers."""
    writable(out, folder=target is not None)
    if checkpoint is not None and quantized is not None:
        raise ModelReferenceError("--checkpoint and --quantized: give one; a quantized program holds the pruned model")
    given = resolve(model, input_shape, weights, quiet=as_json)
    exported: nn.Module = given.model
    if quantized is not None:
        exported = load_quantized(quantized)
    elif checkpoint is not None:
        exported = pruned(given, checkpoint).model
    shapes = None if dynamic_shapes is None else dict(map(_dims, dynamic_shapes))
    options = chosen(
        dynamic_batch=dynamic_batch, dynamic_shapes=shapes, tolerance=tolerance, repeats=repeats, overwrite=overwrite,
        target=target, data=None if data is None else batches(data, progress=not as_json),
    )  # fmt: skip
    done = bough.export(exported, given.inputs, out, **options)
    typer.echo(json.dumps({**done.to_dict(), "weights": given.weights.to_dict()}) if as_json else str(done))


def _dims(text: str) -> tuple[str, dict[int, str]]:
    """Return (input name, {dim: name}) of a text such as "input_ids=0:batch,1:sequence".

    Example:
        >>> _dims("input_ids=0:batch,1:sequence")
        ('input_ids', {0: 'batch', 1: 'sequence'})
    """
    name, _, dims = text.partition("=")
    try:
        return name, {int(dim): symbol for dim, _, symbol in (part.partition(":") for part in dims.split(",")) if symbol}
    except ValueError:
        raise ModelReferenceError(f"--dynamic-shapes {text!r}: write NAME=DIM:SIZE,DIM:SIZE, such as x=0:batch") from None
