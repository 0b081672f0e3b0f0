"""`bough compare`: criteria, allocations and budgets side by side, into a folder that a killed run goes on in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bough.cli.budgets import budget_of
from bough.cli.calibration import KNOWN, Batches, LossOf, calibration
from bough.cli.models import resolve
from bough.cli.options import Json, Model, Shape, writable
from bough.cli.references import find
from bough.comparing import compare as compare_criteria
from bough.comparing.folder import PLOT
from bough.errors import ComparisonError


def compare(
    model: Model,
    evaluate: Annotated[str, typer.Option(help="module:fn; fn(model) is the metric, or a dict of them, the first plotted")],
    budgets: Annotated[list[str], typer.Option(help="such as macs=50% or macs=50%,size=8MiB; may be repeated")],
    out: Annotated[Path, typer.Option(help="folder for rows and picture; rows that are there are not made again")],
    criteria: Annotated[list[str] | None, typer.Option(help=f"l2 unless given; may be repeated: {KNOWN}")] = None,
    allocations: Annotated[list[str] | None, typer.Option(help="global unless given; may be repeated")] = None,
    data: Batches = None,
    loss: LossOf = None,
    seeds: Annotated[list[int] | None, typer.Option(help="of criteria that draw, random among them; may be repeated")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="solve the cut models' weights anew before evaluating")] = False,
    input_shape: Shape = None,
    round_to: Annotated[int, typer.Option(help="widths become multiples of this")] = 1,
    ignore: Annotated[list[str] | None, typer.Option(help="a module, parameter or group to leave; may be repeated")] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="of the first metric")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compares criteria, allocations and budgets on a metric of your own, with random scores as the control."""
    writable(out, folder=True)
    names = criteria or ["l2"]
    bounds = [budget_of([text]) for text in budgets]
    metric = find(evaluate)
    given = calibration(data, loss, names, progress=False)
    net, inputs = resolve(model, input_shape)
    found = compare_criteria(
        net, inputs, names, bounds, metric, allocations=allocations or ["global"], seeds=seeds or [0], data=given.data,
        loss=given.loss, refit=refit, ignore=ignore or (), folder=out, about={"data": str(data)}, round_to=round_to,
        lower_is_better=lower_is_better, progress=not as_json,
    )  # fmt: skip
    picture, why = out / PLOT, None
    try:
        found.plot(picture)
    except ComparisonError as error:
        why = str(error)
    if as_json:
        drawn = {"plot": None, "no_plot": why} if why else {"plot": str(picture)}
        typer.echo(json.dumps({**found.to_dict(), "folder": str(out), **drawn}))
    else:
        typer.echo(f"{found}\n{f'no picture: {why}' if why else f'picture: {picture}'}")
