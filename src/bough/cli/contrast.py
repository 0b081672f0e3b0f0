"""`bough contrast` and `bough predictability`: structured pruning beside zeros, and kept work against measured time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import bough
from bough.cli.calibration import batches
from bough.cli.models import resolve
from bough.cli.options import Ignore, Json, Model, Shape, WeightsOf, chosen
from bough.cli.outputs import writable
from bough.cli.references import model_function
from bough.cli.tasks import CONTRACT, task_of
from bough.contrasting import PLOT
from bough.errors import ComparisonError
from bough.recovery import Training

Clock = Annotated[str | None, typer.Option(help="wall, or cpu: the time of one thread, on a machine that does other work too")]
RoundTo = Annotated[int | None, typer.Option(help="structured widths are multiples of this")]
Repeats = Annotated[int | None, typer.Option(help="timed passes of each model", min=1)]


def contrast(
    model: Model,
    evaluate: Annotated[str, typer.Option(help="module:fn; fn(model) gives a number, such as the accuracy")],
    data: Annotated[str | None, typer.Option(help="module:fn; fn() gives unlabelled batches, for refit and scores")] = None,
    train: Annotated[str | None, typer.Option(help=f"the data that every variant is trained on alike: {CONTRACT}")] = None,
    epochs: Annotated[int | None, typer.Option(help="of that training, the same for all variants")] = None,
    lr: Annotated[float | None, typer.Option(help="highest learning rate of that training")] = None,
    batch_size: Annotated[int | None, typer.Option(help="samples per batch, where --train gives a dataset")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="of the training; given again, each variant is trained once per seed")
    ] = None,
    recover: Annotated[str | None, typer.Option(help="module:fn in place of --train; fn(model) trains it in place")] = None,
    kernels: Annotated[
        list[str] | None, typer.Option(help="sparse kernels to time: csr, bsr; semi_structured on a GPU; may be repeated")
    ] = None,
    keeps: Annotated[list[float] | None, typer.Option(help="share of parameters kept, such as 0.5; may be repeated")] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="of unstructured sparsity: magnitude, wanda, sparsegpt; may be repeated")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M, 2:4 unless given")] = None,
    round_to: RoundTo = None,
    tolerance: Annotated[float | None, typer.Option(help="how much worse the metric may be at equal accuracy")] = None,
    lower_is_better: Annotated[bool | None, typer.Option(help="of the metric")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    ignore: Ignore = None,
    repeats: Repeats = None,
    clock: Clock = None,
    out: Annotated[Path | None, typer.Option(help="folder for rows and picture; rows in it are not made again")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model dense, structurally pruned, unstructured sparse and N:M sparse, at equal numbers of non-zeros."""
    writable(out, folder=True)
    metric = model_function(evaluate, "--evaluate")
    own = chosen(epochs=epochs, lr=lr, batch_size=batch_size)
    if own and train is None:
        raise ComparisonError("--epochs, --lr and --batch-size are of the training on --train: give it as well")
    task = None if train is None else task_of(train)
    given = resolve(model, input_shape, weights, quiet=as_json)
    found = bough.contrast(
        given.model, given.inputs, metric, data=None if data is None else batches(data), folder=out, progress=not as_json,
        train=None if task is None else task.train, loss=None if task is None else task.loss,
        training=None if task is None else Training(**own),
        **chosen(
            recover=None if recover is None else model_function(recover, "--recover"), keeps=keeps or None,
            methods=methods or None, pattern=pattern, round_to=round_to, tolerance=tolerance, lower_is_better=lower_is_better,
            ignore=ignore or None, repeats=repeats, clock=clock, seeds=seeds or None, kernels=kernels or None,
        ),
    )  # fmt: skip
    _show(found, None if out is None else out / PLOT, {"weights": given.weights.to_dict()}, as_json)


def predictability(
    model: Model,
    backend: Annotated[str | None, typer.Option(help="eager, compile or onnxruntime")] = None,
    points: Annotated[int | None, typer.Option(help="number of cut models, at least 3")] = None,
    least: Annotated[float | None, typer.Option(help="smallest share of units kept")] = None,
    round_to: RoundTo = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    ignore: Ignore = None,
    repeats: Repeats = None,
    clock: Clock = None,
    seed: Annotated[int | None, typer.Option(help="of the random cuts")] = None,
    out: Annotated[Path | None, typer.Option(help="file of the picture, such as predictability.png")] = None,
    as_json: Json = False,
) -> None:
    """Cut a model to many sizes, measure each, and fit its latency by kept MACs, parameters and channels."""
    writable(out, folder=False)
    given = resolve(model, input_shape, weights, values=False, quiet=as_json)
    found = bough.predictability(
        given.model, given.inputs, progress=not as_json,
        **chosen(
            backend=backend, points=points, least=least, round_to=round_to, ignore=ignore or None, repeats=repeats, clock=clock,
            seed=seed,
        ),
    )  # fmt: skip
    _show(found, out, {}, as_json)


def _show(found: bough.Contrast | bough.Predictability, picture: Path | None, more: dict[str, Any], as_json: bool) -> None:
    """Print a result and draw its picture; a picture that can not be drawn is a remark, since the result is there."""
    why = "no --out was given" if picture is None else None
    if picture is not None:
        try:
            found.plot(picture)
        except ComparisonError as error:
            why = str(error)
    if as_json:
        drawn = {"plot": None, "no_plot": why} if why else {"plot": str(picture)}
        typer.echo(json.dumps({**found.to_dict(), **more, **drawn}))
    else:
        typer.echo(f"{found}")
        typer.echo(f"no picture: {why}" if why else f"picture: {picture}")
