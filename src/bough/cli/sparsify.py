"""`bough sparsify`: zeros in a model, or in its pruned form, and a checkpoint of it."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

import bough
from bough.cli.calibration import LossOf, calibration
from bough.cli.flags import in_flags
from bough.cli.models import pruned, resolve
from bough.cli.options import Ignore, Json, Model, Overwrite, Shape, WeightsOf, chosen
from bough.cli.outputs import save, unused, writable
from bough.errors import PlanError
from bough.exporting.contents import WEIGHTS
from bough.sparsity import METHODS
from bough.sparsity.densities import ALLOCATIONS
from bough.sparsity.formats import FORMATS, format_named

_NEEDS_LOSS = "taylor"  # a criterion on the loss, of which batches the same is asked as for snip


def sparsify(
    model: Model,
    sparsity: Annotated[float | None, typer.Option(help="share of zeros, such as 0.8; or give --pattern")] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M in place of --sparsity, such as 2:4")] = None,
    method: Annotated[str | None, typer.Option(help=", ".join(METHODS))] = None,
    allocation: Annotated[str | None, typer.Option(help=f"of --sparsity over the weights: {', '.join(ALLOCATIONS)}")] = None,
    data: Annotated[str | None, typer.Option(help="module:fn; fn() gives batches, for snip, wanda and sparsegpt")] = None,
    loss: LossOf = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to make sparse in place of MODEL")
    ] = None,
    ignore: Ignore = None,
    only: Annotated[list[str] | None, typer.Option(help="make nothing else sparse; named as for --ignore")] = None,
    permute: Annotated[bool | None, typer.Option("--permute", help="with --pattern: first permute channels")] = None,
    damping: Annotated[float | None, typer.Option(help="of sparsegpt, as a share of the mean of its diagonal")] = None,
    sites: Annotated[int | None, typer.Option(help="output positions per sample at which a convolution is sampled")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the checkpoint, which --checkpoint and bough.load read")] = None,
    format: Annotated[str | None, typer.Option(help=f"of weights with zeros in --out: {', '.join(FORMATS)}")] = None,
    compress: Annotated[bool | None, typer.Option("--compress", help="gzip the weights in --out")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Zero single weights of a model, unstructured or in an N:M pattern, and save it; no dense kernel gets faster by zeros."""
    writable(out, folder=True)
    unused(out, overwrite)
    storing = chosen(format=format, compress=compress)
    if storing and out is None:
        raise PlanError("--format and --compress are for --out, the folder of the checkpoint: give --out")
    format_named(format or "dense")
    given = calibration(data, loss, [_NEEDS_LOSS] if method == "snip" else [], progress=not as_json)
    net = resolve(model, input_shape, weights, quiet=as_json)
    small = None if checkpoint is None else pruned(net, checkpoint)
    done = bough.sparsify(
        net.model if small is None else small.model, net.inputs, sparsity,
        **chosen(
            pattern=pattern, method=method, allocation=allocation, data=given.data,
            loss=given.loss if method == "snip" else None, ignore=ignore or None, only=only or None, permute=permute,
            damping=damping, sites=sites,
        ),
    )  # fmt: skip
    message, stored = "", None
    if out is not None:
        message = save(done.remove(), done.plan if small is None else small.plan, out, model, **storing)
        stored = sum(file.stat().st_size for file in out.glob(f"{Path(WEIGHTS).stem}*{Path(WEIGHTS).suffix}"))
    if as_json:
        saved = {"saved": None if out is None else str(out), "bytes": stored}
        typer.echo(json.dumps({**done.to_dict(), "weights": net.weights.to_dict(), **saved}))
        return
    typer.echo(in_flags(f"{done}", signature(sparsify).parameters))
    if out is not None:
        typer.echo(f"{message}; its weights take {stored:,} bytes")
