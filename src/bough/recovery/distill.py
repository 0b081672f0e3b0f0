"""`distill`: a small model learns from a large one; and its loss, for loops of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bough.arguments import check_arguments, check_fields
from bough.calibration import Loss, as_model_loss, as_output_loss, calling_convention
from bough.errors import TrainingError
from bough.recovery.attach import Regularizer
from bough.recovery.features import Features
from bough.recovery.finetune import batch_loss, classes_dim, forward_of, logits_of
from bough.recovery.homes import homes_kept
from bough.recovery.identity import settings
from bough.recovery.launch import Accelerator, accelerating
from bough.recovery.loop import Run, Task
from bough.recovery.modes import modes_kept
from bough.recovery.training import Trained, Training


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, dim: int = -1) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over all dims but that of classes (Hinton et al., 2015).

    Args:
        student, teacher: logits of one shape.
        dim: where classes (or words) are.
        temperature: T; networks that are sure of their training data teach more at a high one.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> float(distillation_loss(logits, logits))
        0.0
    """
    check_arguments(distillation_loss, locals())
    if student.shape != teacher.shape:
        raise TrainingError(f"logits of the student are {list(student.shape)}, of the teacher {list(teacher.shape)}")
    if temperature <= 0:
        raise TrainingError(f"temperature={temperature}: must be positive")
    if not -student.dim() <= dim < student.dim():
        raise TrainingError(f"dim={dim}: logits {list(student.shape)} have no such dim")
    own, wanted = (
        F.log_softmax(x.float() if x.itemsize < 4 else x, dim) for x in (student / temperature, teacher / temperature)
    )
    return temperature**2 * F.kl_div(own, wanted, log_target=True, reduction="none").sum(dim).mean()


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is learned from the teacher: (1 - logits) x the task's loss + logits x `distillation_loss` + features x distance.

    `logits`: from 0 to 1; at 1 labels are not needed. `dim`: of the logits, where classes are; unless given what labels
    leave for them, [N, classes, ...] or [N, ..., classes], and without labels the last, or 1 of four dims or more, as of maps.
    `features`: the weight of `match`'s distance. `match`: a `Features`.
    """

    temperature: float = 4.0
    logits: float = 0.5
    features: float = 1.0
    match: Features | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        numbers = all(isinstance(w, Real) for w in (self.logits, self.temperature, self.features))
        if not numbers or not 0 <= self.logits <= 1 or self.temperature <= 0 or self.features < 0:
            raise TrainingError(f"{self}: numbers, logits from 0 to 1, temperature above 0, features not negative")
        check_fields(self)


def distill(
    small: nn.Module,
    model: nn.Module,
    train: Any,
    training: Training | None = None,
    *,
    distillation: Distillation | None = None,
    loss: Loss | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    optimizer: Optimizer | None = None,
    regularizers: Sequence[Regularizer] = (),
    callback: Callable[[dict[str, Any]], object] | None = None,
    accelerator: Accelerator | None = None,
) -> Trained:
    """Trains `small` in place to give what `model`, the unpruned one, gives; `model` only runs, in eval mode, on
    the same device. Both end on the device where they were before.

    Args and errors as for `finetune`. An optimizer of your own that should train projections of `Distillation.match` has to
    hold them.

    Example:
        >>> import torch, bough
        >>> from torch.utils.data import TensorDataset
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> small = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%")).model
        >>> x = torch.randn(96, 4)
        >>> done = distill(small, net, TensorDataset(x), Training(epochs=2), distillation=Distillation(logits=1.0))
        >>> done.steps
        6
    """
    check_arguments(distill, locals())
    how, run = distillation or Distillation(), forward or forward_of(train)
    runs_model = loss is not None and calling_convention(loss, "output") == "model"
    task_loss = batch_loss if loss is None else as_model_loss(loss, run) if runs_model else as_output_loss(loss)
    pair = _Pair(small, model, how, run, task_loss if runs_model and how.logits < 1 else None)

    def total(found: _Found, batch: Any) -> Tensor:
        own, wanted = logits_of(found.student), logits_of(found.teacher)
        labelled = loss is None and how.logits < 1 and own is found.student  # by `batch_loss`, which takes classes from dim 1
        if how.dim is not None:
            dim = how.dim
        elif labelled and own.dim() > 2 and isinstance(batch, (tuple, list)) and len(batch) == 2:
            dim = classes_dim(own, batch[1])
        else:
            dim = 1 if own.dim() > 3 else -1
        value = how.logits * distillation_loss(own, wanted, temperature=how.temperature, dim=dim)
        if how.logits < 1:
            task = task_loss(found.student, batch) if found.loss is None else found.loss
            value = value + (1 - how.logits) * task
        return value if found.distance is None else value + how.features * found.distance

    def measured(trained: nn.Module) -> float:
        assert evaluate is not None
        return evaluate(small)

    task = Task(lambda trained, batch: trained(batch), total, measured if evaluate else None, callback, settings(how), small)
    training = training or Training()
    kept = homes_kept(pair, model, optimizer=optimizer)
    with kept, modes_kept(model), modes_kept(small), accelerating(training, accelerator) as here:
        model.to(here.device)
        return Run(pair, train, task, training, optimizer, regularizers, here)()


@dataclass(frozen=True, slots=True)
class _Found:
    student: Any
    teacher: Any
    distance: Tensor | None
    loss: Tensor | None = None


class _Pair(nn.Module):
    """The student, with what is learned to compare it; the teacher is no part of what is trained or saved."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, how: Distillation, run: Callable[[nn.Module, Any], Any],
        loss: Callable[[nn.Module, Any], Tensor] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.match = student, how.match
        self._others = (teacher, run, loss)  # in a tuple, so that it is no submodule

    def forward(self, batch: Any) -> _Found:
        teacher, run, loss = self._others
        if self.match is None:
            own, wanted, distance = run(self.student, batch), _answer(teacher, run, batch), None
        else:
            with self.match.watch(self.student, teacher) as seen:
                wanted, own = _answer(teacher, run, batch), run(self.student, batch)
            distance = self.match(seen)
        return _Found(own, wanted, distance, None if loss is None else loss(self.student, batch))


def _answer(teacher: nn.Module, run: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
    teacher.eval()
    with torch.no_grad():
        return run(teacher, batch)
