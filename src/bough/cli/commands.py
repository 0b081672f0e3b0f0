"""The commands, each a few lines over the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import bough
from bough.cli.compare import compare
from bough.cli.models import resolve
from bough.cli.options import Json, Model, Shape
from bough.cli.prune import prune
from bough.cli.refit import refit
from bough.cli.table import table
from bough.cli.train import distill, finetune
from bough.measuring import latencies
from bough.report.tables import costs_table, groups_table, show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Structured pruning of PyTorch models.",
)

app.command()(prune)
app.command()(refit)
app.command()(finetune)
app.command()(distill)
app.command()(compare)
app.command()(table)


@app.command()
def inspect(model: Model, input_shape: Shape = None, as_json: Json = False) -> None:
    """Shows what can be cut, what can not and why, and what the model costs."""
    net, inputs = resolve(model, input_shape)
    graph = bough.trace(net, inputs)
    if as_json:
        typer.echo(json.dumps(graph.to_dict()))
    else:
        show(groups_table(graph))
        for frozen in graph.frozen:
            typer.echo(f"frozen: {frozen.name} ({frozen.size} units): {frozen.reason}")
        for op in graph.unknown_ops:
            typer.echo(f"unknown op, all it touches is frozen: {op}")
        show(costs_table({"cost": graph.cost().to_dict()}))


@app.command()
def measure(
    model: Model,
    checkpoint: Annotated[Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to set beside it")] = None,
    input_shape: Shape = None,
    repeats: Annotated[int, typer.Option(help="timed passes of each model")] = 30,
    as_json: Json = False,
) -> None:
    """Measures parameters, MACs, size, memory and latency, of a model and its pruned form."""
    net, inputs = resolve(model, input_shape)
    models = {"model": net}
    if checkpoint is not None:
        models["pruned"] = bough.load(checkpoint, lambda: resolve(model, input_shape)[0])
    times = latencies(models, inputs, repeats=repeats)
    rows: dict[str, dict[str, Any]] = {
        name: {**bough.trace(m, inputs).cost().to_dict(), "latency_ms": 1e3 * times[name].median} for name, m in models.items()
    }
    if as_json:
        typer.echo(json.dumps({n: {**row, "latency": times[n].to_dict()} for n, row in rows.items()}))
    else:
        show(costs_table(rows))


@app.command()
def demo(
    page: Annotated[Path, typer.Option(help="where the HTML page goes")] = Path("bough-demo.html"),
    seeds: Annotated[int, typer.Option(help="how many times, from different seeds")] = 3,
    as_json: Json = False,
) -> None:
    """Trains a small residual net on real handwritten digits, cuts it to 25 % of its MACs and proves it."""
    from bough.cli.demo import run

    run(page, seeds, as_json)
