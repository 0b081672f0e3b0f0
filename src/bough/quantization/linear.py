"""INT8 weights of linear layers without calibration, for models that are mostly linear layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calls import as_calls
from bough.errors import QuantizationError
from bough.measuring import eval_mode, signal_to_noise
from bough.quantization.torchao_import import require_torchao
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.tree import tensors_within
from bough.tracing.capture.wrapped import unwrap

KINDS = ("dynamic", "weight-only")


@dataclass(frozen=True)
class LinearQuantized:
    """A copy of a model whose linear layers have INT8 weights.

    Attributes:
        model: the copy; an `nn.Module` like the model, whose linear layers hold torchao's tensors.
        kind: "dynamic" or "weight-only".
        layers: names of the layers that were quantized.
        signal_to_noise: of the outputs on the example inputs, in dB.
        size, float_size: bytes of the weights and buffers, of the copy and of the model.
    """

    model: nn.Module
    kind: str
    layers: tuple[str, ...]
    signal_to_noise: float
    size: int
    float_size: int

    def __str__(self) -> str:
        return (
            f"{len(self.layers)} linear layers, {self.kind} INT8: {self.signal_to_noise:.1f} dB signal to noise, "
            f"{self.size:,} bytes ({self.float_size:,} before)"
        )


def quantize_linear(model: nn.Module, example_inputs: Any, *, kind: str = "dynamic") -> LinearQuantized:
    """Quantize the linear layers of a copy of a model by torchao's `quantize_`; needs no data.

    Args:
        model: stays as it is.
        example_inputs: as for `trace`; what the error is measured on.
        kind: "dynamic" rounds the inputs of each layer to INT8 as they come, a scale for each row; "weight-only" keeps them in
            float, which is slower and more exact.

    Raises:
        QuantizationError: torchao is not installed, `kind` is unknown, or the model has no linear layer.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> done = bough.quantization.quantize_linear(net, torch.randn(8, 32))
        >>> done.layers, done.size < done.float_size, done.signal_to_noise > 20
        (('0', '2'), True, True)
    """
    check_arguments(quantize_linear, locals())
    if kind not in KINDS:
        raise QuantizationError(f"quantize_linear(kind={kind!r}): use {' or '.join(map(repr, KINDS))}")
    require_torchao("quantize_linear")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    inner = unwrap(model)
    layers = tuple(name for name, module in inner.named_modules() if isinstance(module, nn.Linear))
    if not layers:
        raise QuantizationError(f"{type(inner).__name__} has no linear layer: use bough.quantize")
    made = copy.deepcopy(inner)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    quantize_(made, Int8DynamicActivationInt8WeightConfig() if kind == "dynamic" else Int8WeightOnlyConfig())
    with eval_mode(inner, made), unchanged_rng(), torch.no_grad():
        wanted, found = ([_outputs(call(m)) for call in as_calls(example_inputs)] for m in (inner, made))
    ratio = signal_to_noise(_named(wanted), _named(found))
    return LinearQuantized(made, kind, layers, ratio, _bytes(made), _bytes(inner))


def _outputs(value: Any) -> list[Tensor]:
    return [t for t in tensors_within(value) if t.is_floating_point()]


def _named(outputs: list[list[Tensor]]) -> dict[str, Tensor]:
    return {f"{i}.{j}": t for i, several in enumerate(outputs) for j, t in enumerate(several)}


def _bytes(model: nn.Module) -> int:
    """Return the bytes of a model's tensors; of those that are made of other tensors, the bytes of these."""
    plain: dict[int, Tensor] = {}
    waiting: list[Any] = [*model.parameters(), *model.buffers()]
    while waiting:
        tensor = waiting.pop()
        if hasattr(tensor, "__tensor_flatten__") and type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            waiting += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        else:
            plain[id(tensor)] = tensor
    return sum(t.numel() * t.itemsize for t in plain.values())
