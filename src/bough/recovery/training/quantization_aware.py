"""Training of a quantized program in place of a model: what `finetune` and `distill` need of `bough.quantization`.

Quantization is a stage above recovery, so the trainers know it by protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from bough.errors import TrainingError
from bough.recovery.training.optimizer_hooks import Regularizer
from bough.recovery.training.options import Trained

Evaluate = Callable[[nn.Module], float]


class QuantizedProgram(Protocol):
    """A quantized model; `bough.quantization.Quantized` is one.

    Attributes:
        simulated: the program in float arithmetic that rounds to INT8, with gradients.
    """

    @property
    def simulated(self) -> nn.Module: ...

    def retrained(self, evaluate: Evaluate | None = None) -> QuantizedProgram:
        """Return the program in INT8 after `simulated` was trained."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return errors and sizes as plain values."""
        ...


class QuantizationAware(Protocol):
    """Options of quantization-aware training; `bough.quantization.QAT` is one."""

    def prepare(self, model: nn.Module, evaluate: Evaluate | None = None) -> QuantizedProgram:
        """Return the model quantized after training."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the options that a resumed run must have."""
        ...


@dataclass(frozen=True, slots=True)
class Trainee:
    """The module that a run trains: the user's model, or the simulated program of a quantized one.

    Attributes:
        model: the module to train.
        settings: of quantization, which a resumed run must have; None without quantization.
        quantized: the quantized program whose `simulated` is `model`; None without quantization.
    """

    model: nn.Module
    settings: dict[str, Any] | None = None
    quantized: QuantizedProgram | None = None

    def finish(self, trained: Trained, evaluate: Evaluate | None) -> Trained:
        """Return the record of the run, with the program in INT8 if there is one."""
        return trained if self.quantized is None else replace(trained, quantized=self.quantized.retrained(evaluate))


def trainee(
    model: nn.Module, quantization: QuantizationAware | None, evaluate: Evaluate | None, optimizer: Optimizer | None,
    regularizers: Sequence[Regularizer], *, matches_features: bool = False,
) -> Trainee:  # fmt: skip
    """Return what is trained: the model, or with `quantization` the simulated program that it makes of the model.

    Raises:
        TrainingError: an argument that refers to parameters or modules of the float model, which the program does not have.
    """
    if quantization is None:
        return Trainee(model)
    for name, given in (
        ("optimizer", optimizer is not None), ("regularizers", bool(regularizers)),
        ("Distillation(match)", matches_features),
    ):  # fmt: skip
        if given:
            raise TrainingError(
                f"{name} and quantization exclude each other: {name} refers to parts of the float model, and the program that "
                "is trained has others; train the float model with it first, then with quantization alone"
            )
    quantized = quantization.prepare(model, evaluate)
    return Trainee(quantized.simulated, quantization.settings(), quantized)
