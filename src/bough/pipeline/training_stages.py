"""Stages that train in float: from the start, after a cut, and to the outputs of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from bough.arguments import check_fields
from bough.errors import PipelineError
from bough.pipeline.changed_weights import ChangesWeights
from bough.pipeline.stage import Before, Shared, State
from bough.recovery import Distillation, Training, distill, finetune
from bough.recovery.training import full_state, require_accelerate, seed_all
from bough.storage import tensors_digest


def training_in(training: Training, model: nn.Module, shared: Shared, folder: Path) -> Training:
    """Return the options of a stage's training, whose run lies in the stage's folder and begins with these weights."""
    tensors = sorted(full_state(model).items())
    start = tensors_digest((name, t) for name, t in tensors if isinstance(t, Tensor))
    return replace(training, folder=folder, progress=shared.progress, start=start)


@dataclass(frozen=True, slots=True)
class Train(ChangesWeights):
    """Train the model on `train`, by `bough.finetune`: from its first weights, or after a cut.

    Attributes:
        training: the options; its folder is the stage's own.

    Raises:
        ArgumentError: an option of another type.

    Example:
        >>> import bough
        >>> Train(bough.Training(epochs=20, lr=1e-3)).training.epochs
        20
    """

    name: ClassVar[str] = "train"
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, before: Before) -> None:
        """Raise PipelineError without training data, and TrainingError without accelerate."""
        before.require("Train", train=True)
        require_accelerate()

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Train the model in place and save its weights."""
        done = finetune(
            state.model, shared.train, training_in(self.training, state.model, shared, folder), loss=shared.loss,
            forward=shared.forward, evaluate=shared.evaluate,
        )  # fmt: skip
        self.save(state.model, folder)
        return state, done.to_dict()


@dataclass(frozen=True, slots=True)
class Distill(ChangesWeights):
    """Train the model to the outputs of a teacher, by `distill`.

    Attributes:
        training: the options; its folder is the stage's own.
        distillation: weights of the parts of the loss.
        teacher: makes the teacher; unless given, the model before the cut is the teacher.

    Raises:
        ArgumentError: an option of another type.

    Example:
        >>> import bough
        >>> Distill(distillation=bough.recovery.Distillation(logits=1.0)).teacher is None
        True
    """

    name: ClassVar[str] = "distill"
    training: Training = field(default_factory=Training)
    distillation: Distillation = field(default_factory=Distillation)
    teacher: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, before: Before) -> None:
        """Raise PipelineError without training data, and before a cut without a teacher."""
        if self.teacher is None and "prune" not in before.names:
            raise PipelineError("Distill before Prune has no teacher: give Distill(teacher=function that makes it)")
        before.require("Distill", train=True)
        require_accelerate()

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Train the model in place."""
        if self.teacher is not None:
            seed_all(shared.seed, "teacher")
        teacher = state.dense if self.teacher is None else self.teacher()
        done = distill(
            state.model, teacher, shared.train, training_in(self.training, state.model, shared, folder),
            distillation=self.distillation, loss=shared.loss, forward=shared.forward, evaluate=shared.evaluate,
        )  # fmt: skip
        self.save(state.model, folder)
        return state, done.to_dict()
