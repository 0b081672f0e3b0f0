"""The commands that train: a task is `module:callable`, which returns what is to be learned.

    def task():
        return train, validation, loss, evaluate

`train` is a Dataset or DataLoader; the others may be None or left out: `validation` is a DataLoader, `loss(output, batch)` a
mean over the batch, `evaluate(model, validation)` the metric (the share of right answers unless given). The run's folder
keeps the log, the curve and the state: the same command again goes on where it was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import bough
from bough.cli.models import find, resolve
from bough.errors import ModelReferenceError, TrainingError
from bough.exporting.checkpoint import PLAN
from bough.recovery import Distillation, Features, Iterated, Trained, Training, cubic, geometric, iterate, linear
from bough.recovery import distill as distill_model
from bough.recovery import finetune as finetune_model
from bough.recovery.finetune import logits_of, run_batch

SCHEDULES = {"geometric": geometric, "linear": linear, "cubic": cubic}

Model = Annotated[str, typer.Argument(help="the original: module:callable, timm:NAME, torchvision:NAME or hf:PATH")]
Task = Annotated[str | None, typer.Option(help="module:callable that returns (train, validation, loss, evaluate)")]
Needed = Annotated[str, typer.Argument(help="module:callable that returns (train, validation, loss, evaluate)")]
Checkpoint = Annotated[Path, typer.Option(help="a folder that `bough prune --out` wrote")]
Out = Annotated[Path, typer.Option(help="folder for the run and the trained checkpoint; a killed run in it is resumed")]
Shape = Annotated[str | None, typer.Option(help="sizes of the example input, such as 1,3,224,224")]
Epochs = Annotated[int, typer.Option(help="passes over the data")]
Rate = Annotated[float, typer.Option(help="highest learning rate")]
Optimizer = Annotated[str, typer.Option(help="adamw or sgd")]
Batch = Annotated[int, typer.Option(help="samples per batch, where the task gives a dataset")]
Accumulate = Annotated[int, typer.Option(help="batches per step")]
Precision = Annotated[str, typer.Option(help="no or bf16")]
Patience = Annotated[int | None, typer.Option(help="epochs without a better metric before training stops")]
Seed = Annotated[int, typer.Option(help="of all that is drawn")]
SaveEvery = Annotated[int | None, typer.Option(help="steps between saved states, besides the ends of epochs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def finetune(
    model: Model, task: Needed, checkpoint: Checkpoint, out: Out, epochs: Epochs = 10, lr: Rate = 1e-3,
    optimizer: Optimizer = "adamw", batch_size: Batch = 64, accumulate: Accumulate = 1, precision: Precision = "no",
    patience: Patience = None, seed: Seed = 0, save_every: SaveEvery = None, input_shape: Shape = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Trains a pruned model on, and saves it with its plan."""
    training = Training(
        epochs=epochs, lr=lr, optimizer=optimizer, batch_size=batch_size, accumulate=accumulate, precision=precision,
        patience=patience, seed=seed, save_every=save_every, folder=out, progress=not as_json,
    )  # fmt: skip
    given = _task(task)
    pruned = _pruned(model, checkpoint, input_shape)
    done = finetune_model(pruned.model, given.train, training, loss=given.loss, evaluate=given.metric)
    _finish(pruned, done, out, as_json)


def distill(
    model: Model, task: Needed, checkpoint: Checkpoint, out: Out, epochs: Epochs = 10, lr: Rate = 1e-3,
    optimizer: Optimizer = "adamw", batch_size: Batch = 64, accumulate: Accumulate = 1, precision: Precision = "no",
    patience: Patience = None, seed: Seed = 0, save_every: SaveEvery = None,
    temperature: Annotated[float, typer.Option(help="of both models' logits")] = 2.0,
    logits: Annotated[float, typer.Option(help="from 0 (labels alone) to 1 (the original's logits alone)")] = 0.5,
    features: Annotated[list[str] | None, typer.Option(help="a module whose outputs are to match; may be repeated")] = None,
    input_shape: Shape = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Trains a pruned model to answer as the original does, and saves it with its plan."""
    training = Training(
        epochs=epochs, lr=lr, optimizer=optimizer, batch_size=batch_size, accumulate=accumulate, precision=precision,
        patience=patience, seed=seed, save_every=save_every, folder=out, progress=not as_json,
    )  # fmt: skip
    given = _task(task)
    pruned = _pruned(model, checkpoint, input_shape)
    teacher, inputs = resolve(model, input_shape)
    match = Features(bough.trace(teacher, inputs), features, plan=pruned.plan) if features else None
    how = Distillation(temperature=temperature, logits=logits, match=match)
    done = distill_model(
        pruned.model, teacher, given.train, training, distillation=how, loss=given.loss, evaluate=given.metric
    )  # fmt: skip
    _finish(pruned, done, out, as_json)


def prune_iteratively(
    net: nn.Module, inputs: Any, budget: bough.Budget, task: str | None, training: Training, *, steps: int, schedule: str,
    importance: bough.importance.Criterion, planning: Any, ignore: Iterable[str],
) -> Iterated:  # fmt: skip
    """`bough prune --iterative`: each step's training has a folder in that of the whole, so all of it is resumed."""
    if task is None:
        raise ModelReferenceError("--iterative needs --task module:callable, for the training after each step")
    if schedule not in SCHEDULES:
        raise ModelReferenceError(f"--schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    given = _task(task)
    optimizer = training.optimizer_for(net)

    def recover(small: nn.Module, step: int) -> Trained:
        folder = None if training.folder is None else Path(training.folder) / f"step-{step}"
        how = replace(training, folder=folder)
        return finetune_model(small, given.train, how, loss=given.loss, evaluate=given.metric, optimizer=optimizer)

    return iterate(
        net, inputs, budget, recover, steps=steps, schedule=SCHEDULES[schedule], importance=importance, planning=planning,
        ignore=ignore, optimizer=optimizer,
    )  # fmt: skip


def accuracy(model: nn.Module, validation: Any) -> float:
    """The share of right answers; batches are pairs (inputs, labels)."""
    right = total = 0
    device = next(model.parameters()).device
    for x, y in validation:
        answers = logits_of(run_batch(model, (x.to(device), y))).argmax(1).cpu()
        right, total = right + int((answers == y).sum()), total + y.numel()
    return right / total


@dataclass(frozen=True, slots=True)
class _Given:
    train: Any
    loss: Callable[[Any, Any], Tensor] | None
    metric: Callable[[nn.Module], float] | None


def _task(reference: str) -> _Given:
    made = find(reference)()
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) > 4:
        raise ModelReferenceError(f"{reference} returned {len(parts)} things: (train, validation, loss, evaluate) are wanted")
    train, validation, loss, evaluate = (*parts, None, None, None)[:4]
    measure = evaluate or accuracy
    return _Given(train, loss, None if validation is None else lambda model: measure(model, validation))


@dataclass(frozen=True, slots=True)
class _Pruned:
    model: nn.Module
    plan: bough.Plan


def _pruned(model: str, checkpoint: Path, shape: str | None) -> _Pruned:
    small = bough.load(checkpoint, lambda: resolve(model, shape)[0])
    saved = json.loads((checkpoint / PLAN).read_text(encoding="utf-8"))
    return _Pruned(small, bough.Plan.from_json(json.dumps(saved["plan"])))


def _finish(pruned: _Pruned, done: Trained, out: Path, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # one of several processes
        return
    if not all(bool(p.isfinite().all()) for p in pruned.model.parameters()):
        raise TrainingError("the trained weights are not finite: nothing was saved")
    with torch.no_grad():
        bough.save(pruned, out)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), "saved": str(out)}))
    else:
        typer.echo(f"{done}\nsaved in {out}, with log.jsonl and curve.png")
