"""The commands, each a few lines over the library."""

from __future__ import annotations

import inspect as signatures
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import bough
from bough.cli import supernet
from bough.cli.compare import compare
from bough.cli.contrast import contrast, predictability
from bough.cli.evaluate import evaluate
from bough.cli.export import export
from bough.cli.models import pruned, resolve
from bough.cli.options import Ignore, Json, Model, Only, Shape, Tie, WeightsOf, ties_of
from bough.cli.outputs import writable
from bough.cli.pipeline import pipeline
from bough.cli.prune import prune
from bough.cli.quantize import quantize
from bough.cli.refit import refit
from bough.cli.search import search
from bough.cli.sparsify import sparsify
from bough.cli.table import table
from bough.cli.train import distill, finetune
from bough.graph import unreached_lines
from bough.measuring import latencies
from bough.report.tables import costs_table, groups_table, layers_table, show

STATUS = "Exit status: 0 done, 1 failed (one line on stderr says why), 2 the command line can not be understood."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, epilog=STATUS)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; BOUGH_DEBUG=1 does, too")] = False,
) -> None:
    """Structured pruning of PyTorch models."""


def inspect(
    model: Model,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    ignore: Ignore = None,
    only: Only = None,
    tie: Tie = None,
    as_json: Json = False,
) -> None:
    """Show what can be cut, what can not and why, the layers that --drop takes, and what the model costs."""
    given = resolve(model, input_shape, weights, values=False, quiet=as_json)
    graph = bough.trace(given.model, given.inputs, ignore=ignore or (), only=only or None, tie=ties_of(tie))
    if as_json:
        typer.echo(json.dumps({**graph.to_dict(), "weights": given.weights.to_dict()}))
        return
    show(groups_table(graph))
    if graph.layers:
        show(layers_table(graph))
    for frozen in graph.frozen:
        typer.echo(f"frozen: {frozen.name} ({frozen.size} units): {frozen.reason}")
    for op in graph.unknown_ops:
        typer.echo(f"unknown op, all it touches is frozen: {op}")
    for line in (*graph.notes, *unreached_lines(graph.unreached)):
        typer.echo(line)
    show(costs_table({"cost": graph.cost().to_dict()}))


def measure(
    model: Model,
    checkpoint: Annotated[Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to set beside it")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    repeats: Annotated[int, typer.Option(help="timed passes of each model", min=1)] = 30,
    as_json: Json = False,
) -> None:
    """Measure parameters, MACs, size, memory and latency, of a model and its pruned form."""
    given = resolve(model, input_shape, weights, values=False, quiet=as_json)
    models = {"model": given.model}
    if checkpoint is not None:
        models["pruned"] = pruned(given, checkpoint).model
    times = latencies(models, given.inputs, repeats=repeats)
    rows: dict[str, dict[str, Any]] = {
        name: {**bough.trace(m, given.inputs).cost().to_dict(), "latency_ms": 1e3 * times[name].median}
        for name, m in models.items()
    }
    if as_json:
        rows["model"]["weights"] = given.weights.to_dict()
        typer.echo(json.dumps({n: {**row, "latency": times[n].to_dict()} for n, row in rows.items()}))
    else:
        show(costs_table(rows))


def demo(
    page: Annotated[Path, typer.Option(help="where the HTML page goes")] = Path("bough-demo.html"),
    seeds: Annotated[int, typer.Option(help="how many times, from different seeds", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Train a small residual net on real handwritten digits, cut it to 25 % of its MACs and prove it."""
    from bough.cli.demo import run

    writable(page, folder=False)
    run(page, seeds, as_json)


EXAMPLES: dict[Callable[..., None], str] = {
    inspect: "bough inspect mypackage.models:build",
    prune: "bough prune mypackage.models:build --budget macs=50% --data mypackage.data:batches --out small",
    refit: "bough refit mypackage.models:build mypackage.data:batches --checkpoint small --out refitted",
    finetune: "bough finetune mypackage.models:build mypackage.data:task --checkpoint small --out tuned",
    distill: "bough distill mypackage.models:build mypackage.data:task --checkpoint small --out tuned",
    measure: "bough measure mypackage.models:build --checkpoint small",
    evaluate: "bough evaluate hf:llama --checkpoint small --text validation.txt",
    compare: (
        "bough compare mypackage.models:build --evaluate mypackage.data:accuracy --budgets macs=50% --criteria l2 "
        "--criteria wanda --data mypackage.data:batches --out compared"
    ),
    search: (
        "bough search mypackage.models:build --evaluate mypackage.data:accuracy --budget latency=60% --budget peak_memory=70% "
        "--table table.json --data mypackage.data:batches --out searched"
    ),
    sparsify: "bough sparsify mypackage.models:build --checkpoint small --pattern 2:4 --permute --out sparse --format bitmask",
    contrast: "bough contrast mypackage.models:build --evaluate mypackage.data:accuracy --data mypackage.data:batches",
    predictability: "bough predictability mypackage.models:build --backend onnxruntime --out predictability.png",
    table: "bough table mypackage.models:build --out table.json --backend onnxruntime",
    quantize: "bough quantize mypackage.models:build mypackage.data:batches --checkpoint small --out small-int8",
    export: "bough export mypackage.models:build --checkpoint small --out model.onnx",
    pipeline: "bough pipeline deploy.toml --out run",
    demo: "bough demo --seeds 1",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}\n\n{STATUS}")(command)
app.add_typer(supernet.app, name="supernet")


def command_of(words: Sequence[str]) -> Callable[..., None] | None:
    """Return the command that a command line names, such as "prune" or "supernet train"; None if it names none."""
    named = {command.__name__: command for command in (supernet.EXAMPLES if "supernet" in words else EXAMPLES)}
    return next((named[word] for word in words if word in named), None)


def options_of(words: Sequence[str]) -> frozenset[str]:
    """Return the names of the parameters of the command that a command line names; none where it names none."""
    command = command_of(words)
    return frozenset() if command is None else frozenset(signatures.signature(command).parameters)
