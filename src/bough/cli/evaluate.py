"""`bough evaluate`: the metric of a task, perplexity on a text, and tasks of lm-eval, of a model and its pruned form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from bough.cli.libraries import building
from bough.cli.models import Resolved, pruned, resolve
from bough.cli.options import Json, Model, Shape, WeightsOf, chosen
from bough.cli.tasks import CONTRACT, task_of
from bough.errors import ModelReferenceError, first_line
from bough.measuring import perplexity, zero_shot


def evaluate(
    model: Model,
    task: Annotated[str | None, typer.Argument(help=f"{CONTRACT}; its metric is printed")] = None,
    *,
    checkpoint: Annotated[Path | None, typer.Option(help="a folder that `bough prune --out` wrote, to set beside it")] = None,
    text: Annotated[Path | None, typer.Option(help="a file of text: the perplexity on it is printed")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="folder of the tokenizer, for --text and --tasks; that of hf:PATH unless given")
    ] = None,
    window: Annotated[int | None, typer.Option(help="with --text: tokens that are read at a time")] = None,
    stride: Annotated[int | None, typer.Option(help="with --text: tokens from one window to the next")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="a task of lm-eval (an extra); may be repeated")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="with --tasks: a folder of task files (YAML) of your own")] = None,
    shots: Annotated[int | None, typer.Option(help="with --tasks: solved examples before each question")] = None,
    limit: Annotated[int | None, typer.Option(help="with --tasks: samples of each task")] = None,
    batch_size: Annotated[int | None, typer.Option(help="windows of --text, or requests of --tasks, read together")] = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model, and its pruned form beside it: a task's metric, perplexity on a text, zero-shot tasks of lm-eval."""
    _check(
        task, text, tasks, {"window": window, "stride": stride}, {"task-folder": task_folder, "shots": shots, "limit": limit}
    )
    given = None if task is None else task_of(task)
    if given is not None and given.metric is None:
        raise ModelReferenceError(f"{task} returns no evaluate and no validation, so there is no metric")
    words = None if text is None and not tasks else _tokenizer(model, tokenizer)
    ids = None if text is None else _tokens(words, text)
    original = resolve(model, input_shape, weights, quiet=as_json)
    rows: dict[str, dict[str, Any]] = {}
    for name, net in _models(original, checkpoint).items():
        row = rows.setdefault(name, {})
        if given is not None and given.metric is not None:
            row["metric"] = given.metric(net)
        if ids is not None:
            found = perplexity(net, ids, **_window(net, window), **chosen(stride=stride, batch_size=batch_size))
            row |= found.to_dict()
        if tasks:
            options = chosen(task_folder=task_folder, shots=shots, limit=limit, batch_size=batch_size)
            row["tasks"] = zero_shot(net, words, tasks, **options)
    if as_json:
        typer.echo(json.dumps({**rows, "weights": original.weights.to_dict()}))
        return
    for name, row in rows.items():
        for line in _lines(row):
            typer.echo(f"{name}: {line}")


def _check(
    task: str | None, text: Path | None, tasks: list[str] | None, of_text: dict[str, Any], of_tasks: dict[str, Any]
) -> None:
    """Raise ModelReferenceError for options without what they are for, and where there is nothing to evaluate."""
    if task is None and text is None and not tasks:
        raise ModelReferenceError("nothing to evaluate: give a task module:callable, --text FILE or --tasks NAME")
    if text is not None and not text.is_file():
        raise ModelReferenceError(f"--text {text}: there is no such file")
    for what, present, options in (("--text", text is not None, of_text), ("--tasks", bool(tasks), of_tasks)):
        name = next((n for n, value in options.items() if value is not None), None)
        if name is not None and not present:
            raise ModelReferenceError(f"--{name} is for {what}: add it, or leave --{name} out")


def _models(original: Resolved, checkpoint: Path | None) -> dict[str, nn.Module]:
    """Return the models to evaluate by name."""
    models = {"model": original.model}
    if checkpoint is not None:
        models["pruned"] = pruned(original, checkpoint).model
    return models


def _tokenizer(model: str, folder: str | None) -> Any:
    """Return the tokenizer of a folder, or of a model hf:PATH."""
    kind, _, path = model.partition(":")
    where = folder if folder is not None else path if kind == "hf" else None
    if where is None:
        raise ModelReferenceError(f"{model} has no tokenizer: give --tokenizer FOLDER")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ModelReferenceError("a tokenizer needs transformers: pip install 'bough[hf]'") from None
    if not Path(where).is_dir():
        raise ModelReferenceError(f"--tokenizer {where}: there is no such folder")
    with building(f"the tokenizer of {where}"):
        try:
            return AutoTokenizer.from_pretrained(where)
        except (OSError, ValueError, KeyError) as error:
            raise ModelReferenceError(f"{where} has no tokenizer ({first_line(error)}): give --tokenizer FOLDER") from None


def _tokens(tokenizer: Any, text: Path) -> list[int]:
    """Return the tokens of a file."""
    try:
        ids: list[int] = tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    except UnicodeDecodeError:
        raise ModelReferenceError(f"--text {text}: the file is no text in UTF-8") from None
    return ids


def _window(model: nn.Module, window: int | None) -> dict[str, int]:
    """Return the window: as given, or at most what the model's config says that it can read."""
    if window is not None:
        return {"window": window}
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return {"window": min(2048, longest)} if isinstance(longest, int) and longest > 1 else {}


def _lines(row: dict[str, Any]) -> list[str]:
    """Return what is printed of a model's results."""
    lines = []
    if "metric" in row:
        lines.append(f"metric {row['metric']:.6g}")
    if "perplexity" in row:
        lines.append(f"perplexity {row['perplexity']:.4f} on {row['tokens']} tokens")
    for task, metrics in row.get("tasks", {}).items():
        lines += [f"{task} {name} {value:.4f}" for name, value in metrics.items()]
    return lines
