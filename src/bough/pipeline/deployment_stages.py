"""Stages that quantize the model and write it for other runtimes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from bough.arguments import check_fields
from bough.errors import PipelineError
from bough.exporting import export, require_format
from bough.pipeline.stage import Before, Shared, State
from bough.pipeline.training_stages import training_in
from bough.quantization import QAT, Quantized, load_quantized, require_torchao, save_quantized
from bough.quantization.saved import PROGRAM, REPORT
from bough.recovery import Distillation, Training, distill, finetune
from bough.recovery.training import require_accelerate

_TRAINING = ("training", "distillation")


@dataclass(frozen=True, slots=True)
class Quantize:
    """Quantize the model to INT8 with the pipeline's `data`; with `training`, train it in INT8 (quantization-aware).

    Attributes:
        mixed, observer, equalize, correct_bias, reduce_range: as for `bough.quantize`.
        training: options of the training in INT8; None for quantization after training.
        distillation: the loss of the training in INT8, with the float model that the stage quantizes as the teacher; None to
            learn from the labels of `train` alone.

    Raises:
        ArgumentError: an option of another type.
        PipelineError: `distillation` without `training`.

    Example:
        >>> import bough
        >>> Quantize(training=bough.Training(epochs=3), distillation=bough.recovery.Distillation()).training.epochs
        3
    """

    name: ClassVar[str] = "quantize"
    mixed: float | str | None = None
    observer: str | None = None
    equalize: bool | None = None
    correct_bias: bool | None = None
    reduce_range: bool = False
    training: Training | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.distillation is not None and self.training is None:
            raise PipelineError("Quantize(distillation=...) is the loss of training in INT8: give training=bough.Training(...)")

    def check(self, before: Before) -> None:
        """Raise PipelineError after another quantization, or without data; QuantizationError without torchao."""
        if self.name in before.names:
            raise PipelineError("two stages Quantize: a pipeline quantizes once")
        before.require("Quantize", data=True, train=self.training is not None)
        require_torchao()
        if self.training is not None:
            require_accelerate()

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Quantize the model, train the program if asked for, and save it."""
        assert shared.data is not None
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TRAINING}
        qat = QAT(shared.example_inputs, shared.data, **options)
        if self.training is None:
            made: Quantized = qat.prepare(state.model, shared.evaluate)
            details = made.to_dict()
        else:
            training = training_in(self.training, state.model, shared, folder)
            given: dict[str, Any] = {"loss": shared.loss, "forward": shared.forward, "evaluate": shared.evaluate}
            if self.distillation is None:
                done = finetune(state.model, shared.train, training, quantization=qat, **given)
            else:
                teacher = copy.deepcopy(state.model)
                done = distill(
                    state.model, teacher, shared.train, training, distillation=self.distillation, quantization=qat, **given
                )  # fmt: skip
            made, details = done.quantized, done.to_dict()
        save_quantized(made, shared.example_inputs, folder, overwrite=True)
        return self.restore(state, shared, folder), details

    def restore(self, state: State, shared: Shared, folder: Path) -> State:
        """Load the saved program."""
        return replace(state, quantized=load_quantized(folder))

    def outputs(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """Return the files of the program."""
        return (folder / PROGRAM, folder / REPORT)


@dataclass(frozen=True, slots=True)
class Export:
    """Write the model, or after `Quantize` the program in INT8, by `bough.export`.

    Attributes:
        file: name in the run's folder; its ending, .onnx or .pte, is the format; or a folder of C with `target`.
        target: "cortex-m" for C.
        dynamic_batch, tolerance: as for `bough.export`.

    Raises:
        ArgumentError: an option of another type.
        PipelineError: `file` is not a plain name.

    Example:
        >>> Export("model.onnx", dynamic_batch=True).file
        'model.onnx'
    """

    name: ClassVar[str] = "export"
    file: str
    target: str | None = None
    dynamic_batch: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.file or Path(self.file).name != self.file:
            raise PipelineError(f"Export(file={self.file!r}): give a name in the run's folder, such as 'model.onnx'")

    def check(self, before: Before) -> None:
        """Raise PipelineError if C is asked for and no stage or data gives its scales; ExportError without a package."""
        require_format(self.file, self.target)
        if self.target is not None and Quantize.name not in before.names:
            before.require(f"Export({self.file!r}, target={self.target!r}) without Quantize", data=True)

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Write the file or folder; one that a killed run wrote is replaced."""
        options: dict[str, Any] = {"target": self.target, "data": shared.data} if self.target else {}
        if self.tolerance is not None:
            options["tolerance"] = self.tolerance
        if self.dynamic_batch:
            options["dynamic_batch"] = True
        done = export(state.current, shared.example_inputs, shared.root / self.file, overwrite=True, **options)
        return state, {"file": self.file, **{k: v for k, v in done.to_dict().items() if k != "path"}}

    def restore(self, state: State, shared: Shared, folder: Path) -> State:
        """Return the state as it is."""
        return state

    def outputs(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """Return the file or folder."""
        return (root / self.file,)
