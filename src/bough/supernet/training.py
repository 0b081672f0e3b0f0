"""Training of a supernet: the sandwich rule with in-place distillation, by the loop of `finetune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.calibration import Data, Loss, as_model_loss, as_output_loss, calling_convention
from bough.errors import TrainingError
from bough.planning import Budget
from bough.recovery import Trained, Training
from bough.recovery.training import restore_modes
from bough.recovery.training.accelerate import open_accelerator, unprepared
from bough.recovery.training.dataloaders import training_loader
from bough.recovery.training.devices import restore_devices
from bough.recovery.training.distill import StudentOutputs, run_teacher, weighted_loss
from bough.recovery.training.loop import TrainingRun, TrainingTask
from bough.recovery.training.run_settings import object_settings
from bough.recovery.training.task_loss import batch_loss, forward_of, logits_of
from bough.supernet.extracted import has_batch_statistics
from bough.supernet.sandwich import Sandwich, Schedule, named_subnets
from bough.supernet.subnet import Subnet
from bough.supernet.tabulating import metric_of

if TYPE_CHECKING:
    from bough.supernet.supernet import Supernet

Forward = Callable[[nn.Module, Any], Any]


def train_sandwich(
    net: Supernet, train: Any, training: Training, sandwich: Sandwich, *, subnets: Sequence[Budget | Subnet] | None,
    teacher: nn.Module | None, loss: Loss | None, forward: Forward | None, evaluate: Callable[[nn.Module], float] | None,
    data: Data | None, optimizer: Optimizer | None, callback: Callable[[dict[str, Any]], object] | None, accelerator: Any,
) -> Trained:  # fmt: skip
    """Train a supernet in place; see `Supernet.fit`."""
    named = named_subnets(net, sandwich, subnets)
    _check_teacher(net, teacher, sandwich)
    if evaluate is not None and data is None and has_batch_statistics(net.model):
        raise TrainingError(
            "fit(evaluate=...) needs data: batches on which the batch-norm statistics of each subnet are set before it is "
            "evaluated, such as data=[next(iter(loader))[0]]"
        )
    run = forward or forward_of(train)
    runs_model = loss is not None and calling_convention(loss, "output") == "model"
    task_loss = batch_loss if loss is None else as_model_loss(loss, run) if runs_model else as_output_loss(loss)
    _, batches = training_loader(train, training)
    taught_by_largest = named and teacher is None
    fixed = (net.largest, *(s for s in named if s.key != net.largest.key)) if taught_by_largest else named
    schedule = Schedule(net, sandwich, fixed, training.seed, training.epochs * batches)
    steps = _Steps(schedule, run, task_loss if runs_model else None, teacher)
    evaluated = named or (net.smallest, net.middle, net.largest)
    options = sandwich.distillation

    def one_loss(out: StudentOutputs, batch: Any) -> Tensor:
        if out.teacher is not None:
            return weighted_loss(options, out, batch, task_loss, uses_batch_loss=loss is None)
        return task_loss(out.student, batch) if out.task_loss is None else out.task_loss

    def total_loss(outputs: list[StudentOutputs], batch: Any) -> Tensor:
        return torch.stack([one_loss(out, batch) for out in outputs]).mean()

    task = TrainingTask(
        lambda trained, batch: trained(batch), total_loss, _mean_metric(net, evaluated, evaluate, data) if evaluate else None,
        callback, [*object_settings(options), *schedule.settings(), teacher is not None, _elastic(net)], net,
    )  # fmt: skip
    others = () if teacher is None else (teacher,)
    devices, modes = restore_devices(steps, *others, optimizer=optimizer), restore_modes(nn.ModuleList([net, *others]))
    with devices, modes, unprepared(steps, accelerator), open_accelerator(training, accelerator) as opened:
        if teacher is not None:
            teacher.to(opened.device)
        return TrainingRun(steps, train, task, training, optimizer, (), opened)()


def _elastic(net: Supernet) -> list[Any]:
    """Return what subnets may be, as plain values: a run is resumed with the same ones only."""
    widths = [[list(w.groups), w.counts.tolist()] for w in net.space.widths]
    return [widths, [list(names) for names in net.space.depths]]


def _check_teacher(net: Supernet, teacher: nn.Module | None, sandwich: Sandwich) -> None:
    """Raise TrainingError if the teacher would change in training, or is not used."""
    if teacher is None:
        return
    if {id(m) for m in teacher.modules()} & {id(m) for m in net.modules()}:
        raise TrainingError(
            "fit(teacher=...) is the supernet's own model, which training changes: give the model that bough.supernet was "
            "given, or a copy made before"
        )
    if not sandwich.distillation.logits:
        raise TrainingError("fit(teacher=...) is not used with Distillation(logits=0): give logits above 0, or no teacher")


def _mean_metric(
    net: Supernet, subnets: Sequence[Subnet], evaluate: Callable[[nn.Module], float], data: Data | None
) -> Callable[[nn.Module], float]:
    """Return a function that gives the mean metric of some subnets."""
    return lambda _: float(np.mean([metric_of(net, s, evaluate, data) for s in subnets]))


class _Steps(nn.Module):
    """Runs the subnets of a step on a batch.

    `drawn` counts the batches and is saved with the state of a run, so a resumed run draws the same subnets.

    Args:
        schedule: of the subnets.
        run: (model, batch) -> output.
        loss: (model, batch) -> task loss, of losses that run the model; None where they take its output.
        teacher: gives the logits that the subnets learn; None for the largest subnet's, which learns the task in each step.
    """

    drawn: Tensor

    def __init__(
        self, schedule: Schedule, run: Forward, loss: Callable[[nn.Module, Any], Tensor] | None, teacher: nn.Module | None
    ) -> None:
        super().__init__()
        self.net, self.schedule = schedule.net, schedule
        self._not_submodules = (run, loss, teacher)  # in a tuple, so that the teacher is neither trained nor saved
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Any) -> list[StudentOutputs]:
        run, _, teacher = self._not_submodules
        subnets = self.schedule.subnets(int(self.drawn))
        self.drawn += 1
        if teacher is not None:
            logits = logits_of(run_teacher(teacher, run, batch))
            return [self.outputs(s, batch, logits) for s in subnets]
        largest, *others = subnets
        first = self.outputs(largest, batch, None)
        wanted = self.schedule.sandwich.distillation.logits > 0
        answers = logits_of(first.student).detach() if wanted else None
        return [first, *(self.outputs(s, batch, answers) for s in others)]

    def outputs(self, subnet: Subnet, batch: Any, teacher: Tensor | None) -> StudentOutputs:
        """Return what the loss of a subnet needs: its output, the logits it learns, and a loss that runs the model."""
        run, loss, _ = self._not_submodules
        labels_count = teacher is None or self.schedule.sandwich.distillation.logits < 1
        with self.net.at(subnet) as module:
            output = run(self.net, batch)
            return StudentOutputs(output, teacher, None, loss(module, batch) if loss is not None and labels_count else None)
