"""`bough compare`: criteria, allocations and budgets side by side, into a folder that a killed run goes on in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from bough.cli.budgets import budget_of
from bough.cli.calibration import KNOWN, Batches, LossOf, calibration
from bough.cli.flags import in_flags
from bough.cli.models import resolve
from bough.cli.options import Ignore, Json, Model, Only, Shape, Tie, WeightsOf, chosen, given_by, ties_of
from bough.cli.outputs import writable
from bough.cli.planning import ALLOCATION, allocation_of, planning_options
from bough.cli.references import find, is_reference, positional, user_code
from bough.comparing import compare as compare_criteria
from bough.comparing.folder import PLOT
from bough.errors import ComparisonError, ModelReferenceError


@given_by(planning=planning_options)
def compare(
    model: Model,
    evaluate: Annotated[
        str, typer.Option(help="module:fn; fn(model) is the metric, or a dict of them, the first sorted by and plotted")
    ],
    budgets: Annotated[list[str], typer.Option(help="such as macs=50% or macs=50%,size=8MiB; may be repeated")],
    out: Annotated[Path, typer.Option(help="folder for rows and picture; rows that are there are not made again")],
    planning: dict[str, Any],
    criteria: Annotated[list[str] | None, typer.Option(help=f"l2 unless given; may be repeated: {KNOWN}")] = None,
    allocations: Annotated[list[str] | None, typer.Option(help=f"may be repeated: {ALLOCATION}")] = None,
    data: Batches = None,
    loss: LossOf = None,
    seeds: Annotated[list[int] | None, typer.Option(help="of criteria that draw, random among them; may be repeated")] = None,
    refit: Annotated[bool | None, typer.Option(help="solve the cut models' weights again before evaluating")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    ignore: Ignore = None,
    only: Only = None,
    tie: Tie = None,
    about: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE that sets this run apart from others in --out; may be repeated")
    ] = None,
    lower_is_better: Annotated[bool | None, typer.Option(help="of the first metric")] = None,
    as_json: Json = False,
) -> None:
    """Compare criteria, allocations and budgets on a metric of your own, with random scores as the control."""
    writable(out, folder=True)
    names = criteria or ["l2"]
    bounds = [budget_of([text]) for text in budgets]
    metric = metric_of(evaluate)
    given = calibration(data, loss, names, progress=False)
    net = resolve(model, input_shape, weights, quiet=as_json)
    options = chosen(
        allocations={a: allocation_of(a) for a in allocations} if allocations else None, seeds=seeds or None, data=given.data,
        refit=refit, ignore=ignore or None, only=only or None, tie=ties_of(tie), lower_is_better=lower_is_better,
    )  # fmt: skip
    entrants = {name: given.criterion(name) if is_reference(name) else name for name in names}
    found = compare_criteria(
        net.model, net.inputs, entrants, bounds, metric, loss=given.loss, folder=out,
        about={"data": str(data), **about_of(about or [])}, progress=not as_json, **options, **planning,
    )  # fmt: skip
    picture, why = out / PLOT, None
    try:
        found.plot(picture)
    except ComparisonError as error:
        why = str(error)
    if as_json:
        drawn = {"plot": None, "no_plot": why} if why else {"plot": str(picture)}
        typer.echo(json.dumps({**found.to_dict(), "weights": net.weights.to_dict(), "folder": str(out), **drawn}))
    else:
        typer.echo(in_flags(f"{found}", signature(compare).parameters.keys() - {"budgets"}))
        typer.echo(f"no picture: {why}" if why else f"picture: {picture}")
    if not any(line.good for line in found.lines):
        raise ComparisonError(f"every row failed, such as by: {found.lines[0].rows[0].error}")


def metric_of(reference: str) -> Callable[[nn.Module], Any]:
    """Return the function of a model that a reference names, with its errors reported as those of the user's code."""
    function = find(reference)
    takes = positional(function) if callable(function) else (0, -1)
    if takes is not None and not takes[0] <= 1 <= takes[1]:
        raise ModelReferenceError(
            f"--evaluate {reference}: evaluate(model) is wanted, which gives a number, or a dict of numbers"
        )

    @wraps(function)
    def metric(model: nn.Module) -> Any:
        with user_code(reference):
            return function(model)

    return metric


def about_of(given: Sequence[str]) -> dict[str, str]:
    """Return NAME=VALUE texts as a dict."""
    pairs = dict(text.split("=", 1) for text in given if "=" in text)
    if len(pairs) < len(given):
        raise ComparisonError(f"--about {' '.join(given)}: write NAME=VALUE, each name once")
    return pairs
