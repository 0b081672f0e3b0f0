"""`distill`: train a student to reproduce a teacher; `distillation_loss` for training loops of your own."""

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
from bough.recovery.training.accelerate import Accelerator, open_accelerator
from bough.recovery.training.devices import restore_devices
from bough.recovery.training.features import Features
from bough.recovery.training.loop import TrainingRun, TrainingTask
from bough.recovery.training.lora import LoRA, adapted
from bough.recovery.training.modes import restore_modes
from bough.recovery.training.optimizer_hooks import Regularizer
from bough.recovery.training.options import Trained, Training
from bough.recovery.training.quantization_aware import QuantizationAware, trainee
from bough.recovery.training.run_settings import object_settings
from bough.recovery.training.task_loss import batch_loss, classes_dim, forward_of, logits_of

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) -> output."""


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, dim: int = -1) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over all dims but that of the classes.

    Source: Hinton et al., 2015, Distilling the Knowledge in a Neural Network.

    Args:
        student, teacher: logits of the same shape.
        temperature: T, above 0; a teacher that is very confident on its training data needs a high one.
        dim: dim of the classes (or words).

    Raises:
        ArgumentError: an argument of another type.
        TrainingError: the shapes differ, the temperature is not positive, or the logits have no such dim.

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
    student_log, teacher_log = (
        F.log_softmax(x.float() if x.itemsize < 4 else x, dim) for x in (student / temperature, teacher / temperature)
    )
    return temperature**2 * F.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(dim).mean()


@dataclass(frozen=True, slots=True)
class Distillation:
    """Weights of the loss: (1 - logits) x task loss + logits x `distillation_loss` + features x feature distance.

    Attributes:
        temperature: of `distillation_loss`.
        logits: weight of `distillation_loss`, from 0 to 1; with 1, no labels are needed.
        features: weight of the distance that `match` computes.
        match: compares outputs of modules; None for no such distance.
        dim: dim of the classes in the logits. Unless given, the dim that labels leave for the classes: [N, classes, ...] or
            [N, ..., classes]; without labels the last dim, or dim 1 of logits with four or more dims, as of segmentation maps.

    Raises:
        TrainingError: an option out of range.

    Example:
        >>> Distillation(temperature=2.0, logits=1.0).logits
        1.0
    """

    temperature: float = 4.0
    logits: float = 0.5
    features: float = 1.0
    match: Features | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        are_numbers = all(isinstance(w, Real) for w in (self.logits, self.temperature, self.features))
        if not are_numbers or not 0 <= self.logits <= 1 or self.temperature <= 0 or self.features < 0:
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
    forward: Forward | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    optimizer: Optimizer | None = None,
    regularizers: Sequence[Regularizer] = (),
    callback: Callable[[dict[str, Any]], object] | None = None,
    accelerator: Accelerator | None = None,
    quantization: QuantizationAware | None = None,
    lora: LoRA | None = None,
) -> Trained:
    """Train `small` in place to reproduce the outputs of `model`, the unpruned one.

    `model` only runs, in eval mode and on the same device. Both models are moved back to their devices at the end.

    Args:
        small: the student; is changed.
        model: the teacher; stays as it is.
        train: training data, as for `finetune`; no labels are needed with `Distillation(logits=1)`.
        training: the options.
        distillation: weights of the parts of the loss.
        loss: the task loss, as for `finetune`.
        forward: (model, batch) -> output, for both models; as for `finetune`.
        evaluate: student -> metric, as for `finetune`.
        optimizer: an optimizer of your own; has to include the projections of `Distillation.match` if they are to be trained.
        regularizers, callback, accelerator: as for `finetune`.
        quantization: quantization-aware training of `small`, as for `finetune`; the float model `small` may be the teacher
            as well: `distill(small, small, ..., quantization=QAT(...))`.
        lora: low-rank adapters of `small`, as for `finetune`.

    Returns:
        A record of the run: steps, losses and metrics of the epochs, the best epoch.

    Raises:
        ArgumentError: an argument of another type.
        TrainingError: as for `finetune`, or the outputs of the models cannot be compared.
        CheckpointError: the state in the folder is damaged.

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
    options, run = distillation or Distillation(), forward or forward_of(train)
    runs_model = loss is not None and calling_convention(loss, "output") == "model"
    task_loss = batch_loss if loss is None else as_model_loss(loss, run) if runs_model else as_output_loss(loss)
    match = options.match
    training = training or Training()
    with adapted(small, lora, training.seed, optimizer=optimizer, regularizers=regularizers, quantization=quantization):
        trained = trainee(small, quantization, evaluate, optimizer, regularizers, matches_features=match is not None)
        student = trained.model
        pair = _StudentAndTeacher(student, model, match, run, task_loss if runs_model and options.logits < 1 else None)

        def total_loss(outputs: StudentOutputs, batch: Any) -> Tensor:
            return weighted_loss(options, outputs, batch, task_loss, uses_batch_loss=loss is None)

        def evaluate_student(pair: nn.Module) -> float:
            assert evaluate is not None
            return evaluate(student)

        task = TrainingTask(
            lambda pair, batch: pair(batch), total_loss, evaluate_student if evaluate else None, callback,
            [*object_settings(options), *([] if lora is None else object_settings(lora))], student, trained.settings,
        )  # fmt: skip
        restored = restore_devices(pair, model, optimizer=optimizer)
        with restored, restore_modes(model), restore_modes(student), open_accelerator(training, accelerator) as opened:
            model.to(opened.device)
            done = TrainingRun(pair, train, task, training, optimizer, regularizers, opened)()
    return trained.finish(done, evaluate)


@dataclass(frozen=True, slots=True)
class StudentOutputs:
    """Outputs of both models for a batch, the distance of their features, and a task loss that ran the student itself."""

    student: Any
    teacher: Any
    distance: Tensor | None
    task_loss: Tensor | None


def weighted_loss(
    options: Distillation,
    outputs: StudentOutputs,
    batch: Any,
    task_loss: Callable[[Any, Any], Tensor],
    *,
    uses_batch_loss: bool,
) -> Tensor:
    """Return the weighted sum of distillation loss, task loss and feature distance."""
    student, teacher = logits_of(outputs.student), logits_of(outputs.teacher)
    has_labels = uses_batch_loss and options.logits < 1 and student is outputs.student
    if options.dim is not None:
        dim = options.dim
    elif has_labels and student.dim() > 2 and isinstance(batch, (tuple, list)) and len(batch) == 2:
        dim = classes_dim(student, batch[1])
    else:
        dim = 1 if student.dim() > 3 else -1
    value = options.logits * distillation_loss(student, teacher, temperature=options.temperature, dim=dim)
    if options.logits < 1:
        task = task_loss(outputs.student, batch) if outputs.task_loss is None else outputs.task_loss
        value = value + (1 - options.logits) * task
    return value if outputs.distance is None else value + options.features * outputs.distance


class _StudentAndTeacher(nn.Module):
    """The student and the learned projections; the teacher is not a submodule, so it is neither trained nor saved."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, match: Features | None, run: Forward,
        loss: Callable[[nn.Module, Any], Tensor] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.match = student, match
        self._not_submodules = (teacher, run, loss)  # in a tuple, so that the teacher is not registered

    def forward(self, batch: Any) -> StudentOutputs:
        teacher, run, loss = self._not_submodules
        if self.match is None:
            student_output, teacher_output, distance = run(self.student, batch), run_teacher(teacher, run, batch), None
        else:
            with self.match.watch(self.student, teacher) as features:
                teacher_output, student_output = run_teacher(teacher, run, batch), run(self.student, batch)
            distance = self.match(features)
        return StudentOutputs(student_output, teacher_output, distance, None if loss is None else loss(self.student, batch))


def run_teacher(teacher: nn.Module, run: Forward, batch: Any) -> Any:
    """Return the teacher's output, in eval mode and without gradients."""
    teacher.eval()
    with torch.no_grad():
        return run(teacher, batch)
