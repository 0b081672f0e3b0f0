"""The commands that train: a task is `module:callable`, which returns what is to be learned.

    def task():
        return train, validation, loss, evaluate

`train` is a Dataset or DataLoader; the others may be None or left out: `validation` is a DataLoader, `loss(output, batch)` a
mean over the batch, `evaluate(model, validation)` the metric (the share of right answers unless given). The run's folder
keeps the log, the curve and the state: the same command again goes on where it was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import bough
from bough.cli.models import Pruned, pruned, resolve
from bough.cli.options import Checkpoint, Json, Original, Shape, given_by, training_options
from bough.cli.references import call
from bough.cutting.check import check_weights
from bough.errors import ModelReferenceError, TrainingError
from bough.recovery import Distillation, Features, Iterated, Trained, Training, cubic, geometric, iterate, linear
from bough.recovery import distill as distill_model
from bough.recovery import finetune as finetune_model
from bough.recovery.finetune import logits_of, run_batch
from bough.tracing.wrapped import unwrap

SCHEDULES = {"geometric": geometric, "linear": linear, "cubic": cubic}

Task = Annotated[str | None, typer.Option(help="module:callable that returns (train, validation, loss, evaluate)")]
Needed = Annotated[str, typer.Argument(help="module:callable that returns (train, validation, loss, evaluate)")]


@given_by(training=training_options)
def finetune(
    model: Original,
    task: Needed,
    *,
    checkpoint: Checkpoint,
    training: Training,
    input_shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Trains a pruned model on, and saves it with its plan."""
    given, small = _task(task), pruned(model, checkpoint, input_shape)
    how = _named(training, small, as_json)
    done = finetune_model(small.model, given.train, how, loss=given.loss, evaluate=given.metric)
    _finish(small, done, training, as_json)


@given_by(training=training_options)
def distill(
    model: Original, task: Needed, *, checkpoint: Checkpoint, training: Training,
    temperature: Annotated[float, typer.Option(help="of both models' logits")] = 2.0,
    logits: Annotated[float, typer.Option(help="from 0 (labels alone) to 1 (the original's logits alone)")] = 0.5,
    features: Annotated[list[str] | None, typer.Option(help="a module whose outputs are to match; may be repeated")] = None,
    input_shape: Shape = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Trains a pruned model to answer as the original does, and saves it with its plan."""
    given, small = _task(task), pruned(model, checkpoint, input_shape)
    teacher, inputs = resolve(model, input_shape)
    check_weights(unwrap(teacher), small.plan)
    match = Features(bough.trace(teacher, inputs), features, plan=small.plan) if features else None
    how = _named(training, small, as_json)
    done = distill_model(
        small.model, teacher, given.train, how, loss=given.loss, evaluate=given.metric,
        distillation=Distillation(temperature=temperature, logits=logits, match=match),
    )  # fmt: skip
    _finish(small, done, training, as_json)


@dataclass(frozen=True, slots=True)
class Steps:
    """The cuts of `bough prune --iterative`, and the training after each."""

    count: int
    schedule: str
    task: str
    epochs: int
    lr: float


def step_options(
    *,
    iterative: Annotated[int, typer.Option(help="cut in so many steps, with training by --task after each")] = 1,
    schedule: Annotated[str, typer.Option(help="of the steps: geometric, linear or cubic")] = "geometric",
    task: Task = None,
    epochs: Annotated[int, typer.Option(help="of training after each step")] = 1,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
) -> Steps | None:
    """None for one cut without training."""
    if iterative == 1 and task is None:
        return None
    if task is None:
        raise ModelReferenceError("--iterative needs --task module:callable, for the training after each step")
    if schedule not in SCHEDULES:
        raise ModelReferenceError(f"--schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    return Steps(iterative, schedule, task, epochs, lr)


def prune_iteratively(
    net: nn.Module, inputs: Any, budget: bough.Budget, steps: Steps, *, folder: Path | None, progress: bool, **options: Any
) -> Iterated:
    """Each step's training has a folder in that of the whole, so all of it is resumed. `options`: of `iterate`."""
    given = _task(steps.task)
    training = Training(epochs=steps.epochs, lr=steps.lr, progress=progress)
    optimizer = training.optimizer_for(net)

    def recover(small: nn.Module, step: int) -> Trained:
        how = replace(training, folder=None if folder is None else folder / f"step-{step}", start=_digest(small))
        return finetune_model(small, given.train, how, loss=given.loss, evaluate=given.metric, optimizer=optimizer)

    return iterate(
        net, inputs, budget, recover, steps=steps.count, schedule=SCHEDULES[steps.schedule], optimizer=optimizer, **options
    )


def accuracy(model: nn.Module, validation: Any) -> float:
    """The share of right answers; batches are pairs (inputs, labels)."""
    right = total = 0
    device = next(model.parameters()).device
    for x, y in validation:
        answers = logits_of(run_batch(model, (x.to(device), y))).argmax(1).cpu()
        right, total = right + int((answers == y).sum()), total + y.numel()
    if total == 0:
        raise TrainingError("validation is empty: it gives no labels to count")
    return right / total


@dataclass(frozen=True, slots=True)
class _Given:
    train: Any
    loss: Callable[[Any, Any], Tensor] | None
    metric: Callable[[nn.Module], float] | None


def _task(reference: str) -> _Given:
    made = call(reference)
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) > 4:
        raise ModelReferenceError(f"{reference} returned {len(parts)} things: (train, validation, loss, evaluate) are wanted")
    train, validation, loss, evaluate = (*parts, None, None, None)[:4]
    measure = evaluate or accuracy
    return _Given(train, loss, None if validation is None else lambda model: measure(model, validation))


def _named(training: Training, small: Pruned, as_json: bool) -> Training:
    return replace(training, progress=not as_json, start=_digest(small.model, small.plan))


def _digest(model: nn.Module, plan: bough.Plan | None = None) -> str:
    """Of the weights and the plan: a run in a folder is not taken up by another model of the same shapes."""
    found = hashlib.blake2b((plan.to_json() if plan else "").encode(), digest_size=8)
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _finish(small: Pruned, done: Trained, training: Training, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # one of several processes
        return
    if not all(bool(p.isfinite().all()) for p in small.model.parameters()):
        raise TrainingError("the trained weights are not finite: nothing was saved")
    assert training.folder is not None
    bough.save(small, training.folder, overwrite=True)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), "saved": str(training.folder)}))
    else:
        typer.echo(f"{done}\nsaved in {training.folder}, with log.jsonl and curve.png")
