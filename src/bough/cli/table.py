"""`bough table`: the times of a model's ops, measured here, or taken from what was measured elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import bough
from bough.cli.models import resolve
from bough.cli.options import Json, Model, Shape, WeightsOf
from bough.cli.outputs import writable
from bough.errors import PlanError
from bough.latency import LatencyTable, required_points, to_csv
from bough.measuring import latency
from bough.storage import write_text


def table(
    model: Model,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON of the table, for `bough prune --table`; one that is there is completed")
    ] = None,
    backend: Annotated[str, typer.Option(help="eager, compile or onnxruntime")] = "eager",
    quantum: Annotated[int, typer.Option(help="units that the hardware works on at once")] = 8,
    seconds: Annotated[float, typer.Option(help="how long to measure, once every op has been timed")] = 60.0,
    correct: Annotated[int, typer.Option(help="random cuts of the whole model to correct the table by")] = 0,
    ask: Annotated[Path | None, typer.Option(help="write a CSV of what is to be timed elsewhere, and measure nothing")] = None,
    answers: Annotated[Path | None, typer.Option(help="that CSV with its seconds filled in; nothing is measured here")] = None,
    device: Annotated[str, typer.Option(help="with --answers: the machine in words")] = "another machine",
    as_json: Json = False,
) -> None:
    """Time the ops of a model at a grid of widths, so that plans can be made for a latency."""
    if (ask is None) == (out is None) or (ask is not None and answers is not None):
        raise PlanError("table wants --out FILE for the table, or --ask FILE alone for the CSV that --answers reads later")
    if correct and answers is not None:
        raise PlanError("--correct times whole models here, and --answers are of another machine: leave one of them out")
    writable(out or ask, folder=False)
    filled = None if answers is None else _text(answers)
    given = resolve(model, input_shape, weights, values=False, quiet=as_json)
    graph = bough.trace(given.model, given.inputs)
    if ask is not None:
        points = list(required_points(graph, quantum))
        write_text(ask, to_csv((key, widths, None) for key, widths in points))
        typer.echo(json.dumps({"asked": len(points), "csv": str(ask)}) if as_json else f"asked in {ask}")
        return
    assert out is not None
    if filled is not None:
        made = LatencyTable(device, backend, quantum, 0.0, 0.0).with_csv(filled)
    else:
        made = LatencyTable.measure(graph, backend, quantum=quantum, seconds=seconds, path=out, progress=not as_json)
        if correct:
            made = bough.correct_table(graph, made, lambda m: latency(m, given.inputs, backend=backend).median, plans=correct)
    predicted = float(made.seconds(graph)[0])  # complains of what is missing
    made.save(out)
    found = {"device": made.device, "backend": made.backend, "points": sum(map(len, made.points.values()))}
    if as_json:
        typer.echo(json.dumps({**found, "model_seconds": predicted, "weights": given.weights.to_dict(), "saved": str(out)}))
    else:
        typer.echo(f"{made.device}, {made.backend}: {found['points']} times, the model takes {1e3 * predicted:.3f} ms by them")
        typer.echo(f"saved in {out}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"--answers {path} can not be read: {error}") from None
