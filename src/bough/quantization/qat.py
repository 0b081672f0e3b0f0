"""Options of quantization-aware training, as the argument `quantization` of `finetune` and `distill`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from bough.arguments import check_fields
from bough.calibration import Data
from bough.quantization.quantize import quantize
from bough.quantization.quantized import Quantized

_DATA = ("example_inputs", "data")  # values that settings of a run do not compare


@dataclass(frozen=True, slots=True)
class QAT:
    """Options of quantization-aware training: `finetune(..., quantization=QAT(...))`, and the same for `distill`.

    The model is quantized by `quantize`; then the program that rounds to INT8 is trained in its place: the weights, and the
    scales of activations. The model itself stays as it is, and `Trained.quantized` is the trained program.

    Attributes:
        example_inputs: as for `trace`.
        data: unlabelled batches that choose the initial ranges, as for `quantize`.
        mixed, observer, equalize, correct_bias, reduce_range: as for `quantize`.

    Raises:
        ArgumentError: an option of another type.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(96, 4)
        >>> done = bough.distill(
        ...     net, net, torch.utils.data.TensorDataset(x), bough.Training(epochs=1),
        ...     distillation=bough.recovery.Distillation(logits=1.0),
        ...     quantization=bough.quantization.QAT(x[:1], x.split(32)),
        ... )
        >>> done.quantized.model(x).shape
        torch.Size([96, 2])
    """

    example_inputs: Any
    data: Data | Iterable[Any]
    mixed: float | str | None = None
    observer: str | None = None
    equalize: bool | None = None
    correct_bias: bool | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def prepare(self, model: nn.Module, evaluate: Callable[[nn.Module], float] | None = None) -> Quantized:
        """Return the model quantized after training, whose `simulated` is to be trained; see `quantize`."""
        return quantize(model, self.example_inputs, self.data, evaluate=evaluate, **self.settings())

    def settings(self) -> dict[str, Any]:
        """Return the options without inputs and data: a run is resumed only with the same ones."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _DATA}
