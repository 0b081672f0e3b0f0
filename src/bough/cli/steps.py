"""`bough prune --iterative` and `--task`: several cuts, each followed by recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import bough
from bough.cli.models import Resolved
from bough.cli.options import chosen
from bough.cli.references import find, user_code
from bough.cli.tasks import CONTRACT, task_of
from bough.cli.train import digest
from bough.errors import ModelReferenceError
from bough.recovery import Iterated, Trained, Training, cubic, geometric, iterate, linear
from bough.recovery import finetune as finetune_model

SCHEDULES = {"geometric": geometric, "linear": linear, "cubic": cubic}


@dataclass(frozen=True, slots=True)
class Steps:
    """The cuts of `bough prune --iterative`, and the recovery after each: training on a task, or a function's own."""

    count: int
    schedule: str
    task: str | None
    recover: str | None
    training: Training


def step_options(
    *,
    iterative: Annotated[int, typer.Option(help="cut in so many steps, with --task or --recover after each")] = 1,
    schedule: Annotated[str, typer.Option(help="of the steps: geometric, linear or cubic")] = "geometric",
    task: Annotated[str | None, typer.Option(help=f"what to train on after each step: {CONTRACT}")] = None,
    recover: Annotated[
        str | None, typer.Option(help="a recovery of your own in place of --task: module:fn; fn(model, step), in place")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="of training after each step")] = None,
    lr: Annotated[float | None, typer.Option(help="highest learning rate")] = None,
) -> Steps | None:
    """Return None for one cut without recovery."""
    if iterative == 1 and task is None and recover is None:
        return None
    if (task is None) == (recover is None):
        raise ModelReferenceError(
            "--iterative needs --task module:callable, for the training after each step, or --recover module:fn; one of them"
        )
    if schedule not in SCHEDULES:
        raise ModelReferenceError(f"--schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    return Steps(iterative, schedule, task, recover, Training(**chosen(epochs=epochs, lr=lr)))


def prune_iteratively(
    given: Resolved, budget: bough.Budget, steps: Steps, *, folder: Path | None, progress: bool, **options: Any
) -> Iterated:
    """Each step's training has a folder in that of the whole, so all of it is resumed. `options`: of `iterate`."""
    training = replace(steps.training, progress=progress)
    optimizer = training.optimizer_for(given.model) if steps.task else None
    return iterate(
        given.model, given.inputs, budget, _recovery(steps, training, folder, optimizer), steps=steps.count,
        schedule=SCHEDULES[steps.schedule], optimizer=optimizer, **options,
    )  # fmt: skip


def _recovery(steps: Steps, training: Training, folder: Path | None, optimizer: Any) -> Callable[[nn.Module, int], object]:
    if steps.task is None:
        assert steps.recover is not None
        return _own(steps.recover)
    given = task_of(steps.task)

    def train(small: nn.Module, step: int) -> Trained:
        here = replace(training, folder=None if folder is None else folder / f"step-{step}", start=digest(small))
        return finetune_model(small, given.train, here, loss=given.loss, evaluate=given.metric, optimizer=optimizer)

    return train


def _own(reference: str) -> Callable[[nn.Module, int], object]:
    function = find(reference)
    if not callable(function):
        raise ModelReferenceError(f"--recover: {reference} is a {type(function).__name__}: fn(model, step) is wanted")

    def recover(small: nn.Module, step: int) -> object:
        with user_code(reference):
            return function(small, step)

    return recover
