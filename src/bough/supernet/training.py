"""Training of a supernet: the sandwich rule with in-place distillation, by the loop of `finetune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.arguments import check_fields
from bough.calibration import Data, Loss, as_model_loss, as_output_loss, calling_convention
from bough.errors import TrainingError
from bough.recovery import Distillation, Trained, Training
from bough.recovery.training import restore_modes
from bough.recovery.training.accelerate import open_accelerator, unprepared
from bough.recovery.training.dataloaders import training_loader
from bough.recovery.training.devices import restore_devices
from bough.recovery.training.distill import StudentOutputs, weighted_loss
from bough.recovery.training.loop import TrainingRun, TrainingTask
from bough.recovery.training.run_settings import object_settings
from bough.recovery.training.task_loss import batch_loss, forward_of, logits_of
from bough.supernet.extracted import has_batch_statistics
from bough.supernet.subnet import Subnet
from bough.supernet.tabulating import metric_of

if TYPE_CHECKING:
    from bough.supernet.supernet import Supernet

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, slots=True)
class Sandwich:
    """Which subnets a step of training has, and what they learn.

    Attributes:
        random: number of random subnets beside the largest and the smallest.
        distillation: what the others learn from the largest: `logits` is the weight of its answers, the rest that of the task.
        shrinking: share of all steps over which the smallest width and depth that a step has fall from the largest subnet's to
            the smallest's (progressive shrinking); 0 trains all subnets from the start.

    Raises:
        TrainingError: an option out of range.

    Example:
        >>> Sandwich(random=1).random
        1
    """

    random: int = 2
    distillation: Distillation = field(default_factory=lambda: Distillation(logits=1.0))
    shrinking: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.random < 0 or not (isinstance(self.shrinking, Real) and 0 <= self.shrinking <= 1):
            raise TrainingError(
                f"Sandwich(random={self.random}, shrinking={self.shrinking}): random not negative, shrinking 0 to 1"
            )
        if self.distillation.match is not None:
            raise TrainingError("Sandwich: features of subnets have other widths than the largest's, so match must be None")

    def position(self, step: int, steps: int) -> float:
        """Return the position, from 0 (smallest) to 1 (largest), of the smallest subnet of a step of training."""
        shrunk = self.shrinking * steps
        return max(0.0, 1.0 - step / shrunk) if shrunk else 0.0


def train_sandwich(
    net: Supernet, train: Any, training: Training, sandwich: Sandwich, *, loss: Loss | None, forward: Forward | None,
    evaluate: Callable[[nn.Module], float] | None, data: Data | None, optimizer: Optimizer | None,
    callback: Callable[[dict[str, Any]], object] | None, accelerator: Any,
) -> Trained:  # fmt: skip
    """Train a supernet in place; see `Supernet.fit`."""
    if evaluate is not None and data is None and has_batch_statistics(net.model):
        raise TrainingError(
            "fit(evaluate=...) needs data: batches on which the batch-norm statistics of each subnet are set before it is "
            "evaluated, such as data=[next(iter(loader))[0]]"
        )
    run = forward or forward_of(train)
    runs_model = loss is not None and calling_convention(loss, "output") == "model"
    task_loss = batch_loss if loss is None else as_model_loss(loss, run) if runs_model else as_output_loss(loss)
    _, batches = training_loader(train, training)
    steps = _Steps(net, run, task_loss if runs_model else None, sandwich, training.seed, training.epochs * batches)
    options = sandwich.distillation

    def one_loss(out: StudentOutputs, batch: Any) -> Tensor:
        if out.teacher is not None:
            return weighted_loss(options, out, batch, task_loss, uses_batch_loss=loss is None)
        return task_loss(out.student, batch) if out.task_loss is None else out.task_loss

    def total_loss(outputs: list[StudentOutputs], batch: Any) -> Tensor:
        return torch.stack([one_loss(out, batch) for out in outputs]).mean()

    task = TrainingTask(
        lambda trained, batch: trained(batch), total_loss, _mean_metric(net, evaluate, data) if evaluate else None, callback,
        [*object_settings(options), sandwich.random, sandwich.shrinking, _elastic(net)], net,
    )  # fmt: skip
    restored = restore_devices(steps, optimizer=optimizer)
    with restored, restore_modes(net), unprepared(steps, accelerator), open_accelerator(training, accelerator) as opened:
        return TrainingRun(steps, train, task, training, optimizer, (), opened)()


def _elastic(net: Supernet) -> list[Any]:
    """Return what subnets may be, as plain values: a run is resumed with the same ones only."""
    widths = [[list(w.groups), w.counts.tolist()] for w in net.space.widths]
    return [widths, [list(names) for names in net.space.depths]]


def _mean_metric(net: Supernet, evaluate: Callable[[nn.Module], float], data: Data | None) -> Callable[[nn.Module], float]:
    """Return a function that gives the mean metric of the smallest, middle and largest subnets."""
    return lambda _: float(np.mean([metric_of(net, s, evaluate, data) for s in (net.smallest, net.middle, net.largest)]))


class _Steps(nn.Module):
    """Runs the subnets of a step on a batch.

    `drawn` counts the batches and is saved with the state of a run, so a resumed run draws the same subnets.
    """

    drawn: Tensor

    def __init__(
        self, net: Supernet, run: Forward, loss: Callable[[nn.Module, Any], Tensor] | None, sandwich: Sandwich, seed: int,
        steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.sandwich, self.seed, self.steps = net, sandwich, seed, steps
        self._functions = (run, loss)
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def subnets(self) -> list[Subnet]:
        """Return the subnets of the next step besides the largest."""
        step = int(self.drawn)
        rng, position = np.random.default_rng((self.seed, step)), self.sandwich.position(step, self.steps)
        others = [self.net.sample(rng, smallest=position) for _ in range(self.sandwich.random)]
        return [self.net.space.at(position), *others]

    def forward(self, batch: Any) -> list[StudentOutputs]:
        run, loss = self._functions
        subnets = self.subnets()
        self.drawn += 1
        with self.net.at(self.net.largest) as module:
            answers = run(self.net, batch)
            found = [StudentOutputs(answers, None, None, None if loss is None else loss(module, batch))]
        wants_logits = self.sandwich.distillation.logits > 0
        teacher = logits_of(answers).detach() if wants_logits else None
        for subnet in subnets:
            with self.net.at(subnet) as module:
                task = loss(module, batch) if loss is not None and self.sandwich.distillation.logits < 1 else None
                found.append(StudentOutputs(run(self.net, batch), teacher, None, task))
        return found
