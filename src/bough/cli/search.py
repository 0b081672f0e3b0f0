"""`bough search`: the best models under limits, by workers that share a study; the same command resumes it or joins it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import bough
from bough.cli.budgets import budget_of
from bough.cli.calibration import KNOWN, Batches, LossOf, calibration
from bough.cli.compare import about_of, metric_of
from bough.cli.flags import in_flags
from bough.cli.models import resolve
from bough.cli.options import Ignore, Json, Model, Only, Shape, Tie, WeightsOf, chosen, given_by, ties_of
from bough.cli.outputs import writable
from bough.cli.planning import ALLOCATION, Drop, Minimum, RoundTo, allocation_of, planning_options
from bough.cli.references import find, model_function, user_code
from bough.errors import ModelReferenceError, SearchError
from bough.exporting.checkpoint import refuse_checkpoint
from bough.latency import LatencyTable
from bough.measuring import latency
from bough.report.search_page import search_page
from bough.searching import METHODS, SearchResult
from bough.searching.file_locks import FileLock
from bough.searching.live import FRONT, write_front
from bough.storage import write_text

PLOT, MODELS, REPORT = "front.png", "front", "report.html"


def space_options(
    *,
    round_to: RoundTo = None,
    minimum: Minimum = None,
    drop: Drop = None,
    exact_only: Annotated[bool | None, typer.Option(help="leave groups over which a statistic runs")] = None,
    ragged: Annotated[bool | None, typer.Option(help="each head keeps head dims of its own, where types allow it")] = None,
    table: Annotated[Path | None, typer.Option(help="JSON of a latency table, for latency in --budget or --objective")] = None,
    energy: Annotated[str | None, typer.Option(help="module:fn; fn() is a bough.EnergyModel, for energy likewise")] = None,
) -> dict[str, Any]:
    """Return the keyword arguments of `bough.plan` that were given, of those that a search has."""
    return planning_options(
        round_to=round_to, minimum=minimum, drop=drop, exact_only=exact_only, ragged=ragged, table=table, energy=energy
    )


@given_by(planning=space_options)
def search(
    model: Model,
    evaluate: Annotated[str, typer.Option(help="module:fn; fn(model) is the metric, or an array of it by sample, or a dict")],
    out: Annotated[Path, typer.Option(help="folder for the study, the front and its models; a study in it is continued")],
    planning: dict[str, Any],
    budget: Annotated[list[str] | None, typer.Option(help="such as macs=50% or latency=3ms; may be repeated")] = None,
    objectives: Annotated[
        list[str] | None, typer.Option("--objective", help="NAME=max or NAME=min, of a metric or a cost; may be repeated")
    ] = None,
    at_least: Annotated[list[str] | None, typer.Option(help="METRIC=BOUND that results meet; may be repeated")] = None,
    at_most: Annotated[list[str] | None, typer.Option(help="METRIC=BOUND that results meet; may be repeated")] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=STANDARD ERROR, of a metric that evaluate gives as one number; may be repeated"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="candidates that all workers together evaluate")] = None,
    method: Annotated[str | None, typer.Option(help=", ".join(METHODS))] = None,
    screen: Annotated[
        str | None, typer.Option(help="module:fn; fn(model, share) estimates the first objective, for --method local")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="for --budget latency: candidates meet it as measured, here, or by module:fn; fn(model) -> seconds"),
    ] = None,
    population: Annotated[int | None, typer.Option(help="candidates per generation of nsga2")] = None,
    start: Annotated[list[str] | None, typer.Option(help=f"plans that come first; may be repeated: {ALLOCATION}")] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="a layer that may be left out, or a pattern such as 'blocks.*'; may be repeated")
    ] = None,
    importance: Annotated[str | None, typer.Option(help=f"the criterion: {KNOWN}")] = None,
    data: Batches = None,
    loss: LossOf = None,
    refit: Annotated[bool | None, typer.Option(help="solve the weights of each candidate again, on --data")] = None,
    recalibrate: Annotated[bool | None, typer.Option(help="without a refit, set batch norms again on --data")] = None,
    storage: Annotated[
        str | None, typer.Option(help="an address such as postgresql://user@host/name, for workers on several machines")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the study; a storage may hold several")] = None,
    heartbeat: Annotated[int | None, typer.Option(help="seconds between a worker's signs of life in a database")] = None,
    seed: Annotated[int | None, typer.Option(help="of all that is drawn")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    ignore: Ignore = None,
    only: Only = None,
    tie: Tie = None,
    about: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE that sets this search apart from others; may be repeated")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search the widths of a model, and layers in or out, for the best front; run it again, or elsewhere, to share the work."""
    writable(out, folder=True)
    refuse_checkpoint(out)
    metric = metric_of(evaluate)
    given = calibration(data, loss, [importance] if importance else [], progress=False)
    options = chosen(
        budget=budget_of(budget) if budget else None, objectives=_pairs("--objective", objectives, str),
        at_least=_pairs("--at-least", at_least, float), at_most=_pairs("--at-most", at_most, float),
        noise=_pairs("--noise", noise, float), trials=trials, method=method,
        screen=None if screen is None else _screen(screen), population=population,
        start=[allocation_of(a) for a in start] if start else None, layers=layers or None,
        importance=None if importance is None else given.criterion(importance), data=given.data, refit=refit,
        recalibrate=recalibrate, name=name, heartbeat=heartbeat, seed=seed, ignore=ignore or None, only=only or None,
        tie=ties_of(tie),
    )  # fmt: skip
    net = resolve(model, input_shape, weights, quiet=as_json)
    options |= chosen(measure=None if measure is None else _measure(measure, net.inputs, planning.get("table")))
    found = bough.search(
        net.model, net.inputs, metric, storage=storage or out, progress=not as_json,
        about={"data": str(data), **about_of(about or [])}, **options, **planning,
    )  # fmt: skip
    with FileLock(out / "save.lock"):  # another worker may end at the same time
        write_front(out, found)
        saved = _saved(found, out / MODELS)
        write_text(out / REPORT, search_page(f"Search of {model}", found))
    picture, why = out / PLOT, None
    try:
        found.plot(picture)
    except SearchError as error:
        why = str(error)
    if as_json:
        drawn = {"plot": None, "no_plot": why} if why else {"plot": str(picture)}
        extra = {"weights": net.weights.to_dict(), "folder": str(out), "saved": saved, "report": str(out / REPORT), **drawn}
        typer.echo(json.dumps({**found.to_dict(), **extra}))
    else:
        typer.echo(in_flags(f"{found}", signature(search).parameters.keys() - {"budget"}))
        typer.echo(f"no picture: {why}" if why else f"picture: {picture}")
        typer.echo(f"report: {out / REPORT}; all candidates: {out / FRONT}; models of the front: {out / MODELS}")
    _ = found.best  # raises where no candidate meets the bounds


def _saved(found: SearchResult, folder: Path) -> list[str]:
    """Save the models of the front that are not there, each in a folder of its number; return the folders."""
    paths = []
    for point in found.front:
        path = folder / f"{point.number:04d}"
        if not (path / "plan.json").exists():
            bough.save(found.model(point), found.plan(point), path)
        paths.append(str(path))
    return paths


def _measure(reference: str, inputs: Any, table: LatencyTable | None) -> Callable[[nn.Module], float]:
    """Return what times a model: on this machine with the table's backend, or a function of the user's own."""
    if reference != "here":
        return model_function(reference, "--measure")
    if table is None:
        raise SearchError("--measure here needs --table FILE, whose backend it times models with")
    return Here(inputs, table.backend)


class Here:
    """Times models on this machine: the median of 30 passes."""

    def __init__(self, inputs: Any, backend: str) -> None:
        self.inputs, self.backend = inputs, backend

    def __call__(self, model: nn.Module) -> float:
        return latency(model, self.inputs, backend=self.backend).median

    def __repr__(self) -> str:
        return f"here, {self.backend}"


def _pairs(option: str, given: Sequence[str] | None, kind: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return NAME=VALUE options as a dict, None where there are none."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        try:
            if not sign or not name or name in found:
                raise ValueError
            found[name] = kind(value)
        except ValueError:
            shown = "max or min" if kind is str else "a number"
            raise SearchError(f"{option} {text!r}: write NAME={shown}, each name once") from None
    return found or None


def _screen(reference: str) -> Callable[[nn.Module, float], float]:
    function = find(reference)
    if not callable(function):
        raise ModelReferenceError(f"--screen {reference}: screen(model, share) is wanted, which gives a number")

    @wraps(function)
    def screened(model: nn.Module, share: float) -> float:
        with user_code(reference):
            return float(function(model, share))

    return screened
