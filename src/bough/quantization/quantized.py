"""What `quantize` gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer that is computed in INT8, or was kept in float.

    Attributes:
        name: of the operator in the program.
        module: path of the module in which it ran; empty for the model's own forward.
        op: the operator.
        local: ratio of signal to noise, in decibels, of the layer's output if it alone is in INT8.
        total: the same with the whole program in INT8, as it was before any layer was kept in float.
        precision: "int8" or "float".
    """

    name: str
    module: str
    op: str
    local: float
    total: float
    precision: str = "int8"


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and how far it is from the float model.

    Attributes:
        model: the program with INT8 weights and operators of quantization; called as the model was. `bough.export` takes it.
        simulated: the program in float arithmetic that rounds to INT8, with gradients: what training changes.
        layers: every layer that is, or could be, in INT8.
        signal_to_noise: of the model's outputs, in dB, on held-back data where there is more than one batch: no range was
            chosen on it, but the variant in `trials` was, and layers that `mixed` keeps in float.
        observer: the rule that chose the ranges of activations: "minmax", "percentile" or "mse".
        equalized: pairs of layers between which scales were moved.
        corrected: whether biases make up for the mean error.
        trials: {what was tried: signal-to-noise ratio in dB}.
        size: bytes of the weights, INT8 ones as stored; `float_size`: of the model's before.
        metric, float_metric: of `evaluate`, of the quantized and of the float model; None without it.
        notes: what is not as it was asked for.
    """

    model: nn.Module
    simulated: nn.Module
    layers: tuple[QuantizedLayer, ...]
    signal_to_noise: float
    observer: str
    equalized: int
    corrected: bool
    trials: Mapping[str, float]
    size: int
    float_size: int
    metric: float | None = None
    float_metric: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def kept_in_float(self) -> tuple[str, ...]:
        """The names of layers that were kept in float."""
        return tuple(layer.name for layer in self.layers if layer.precision == "float")

    def retrained(self, evaluate: Callable[[nn.Module], float] | None = None) -> Quantized:
        """Return the result after `simulated` was trained: its weights in INT8. Errors of layers stay those before training.

        Args:
            evaluate: as for `quantize`.

        Example:
            >>> import torch, bough
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> x = torch.randn(96, 4)
            >>> done = bough.quantize(net, x[:1], x.split(32))
            >>> how = bough.recovery.Distillation(logits=1.0)
            >>> train = torch.utils.data.TensorDataset(x)
            >>> trained = bough.distill(done.simulated, net, train, bough.Training(epochs=1), distillation=how)
            >>> done.retrained().model(x).shape
            torch.Size([96, 2])
        """
        from bough.quantization.simulation import converted

        made = converted(self.simulated)
        metric = None if evaluate is None else float(evaluate(made))
        before = "" if self.metric is None else f", and the metric was {self.metric:.6g}"
        note = f"trained: the errors are those before training{before}"
        return replace(self, model=made, metric=metric, notes=(*self.notes, note))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the programs as plain values; infinite ratios as None."""
        layers = [
            {
                "name": x.name, "module": x.module, "op": x.op, "local": _finite(x.local), "total": _finite(x.total),
                "precision": x.precision,
            }
            for x in self.layers
        ]  # fmt: skip
        return {
            "signal_to_noise": _finite(self.signal_to_noise), "observer": self.observer, "equalized": self.equalized,
            "corrected": self.corrected, "trials": {k: _finite(v) for k, v in self.trials.items()}, "size": self.size,
            "float_size": self.float_size, "metric": self.metric, "float_metric": self.float_metric,
            "notes": list(self.notes), "layers": layers,
        }  # fmt: skip

    def __str__(self) -> str:
        inside = sum(x.precision == "int8" for x in self.layers)
        lines = [
            f"{inside} of {len(self.layers)} layers in INT8, {self.size:,} bytes of weights ({self.float_size:,} before)",
            f"outputs: {self.signal_to_noise:.1f} dB signal to noise; ranges by {self.observer}"
            + (f", {self.equalized} pairs equalized" if self.equalized else "")
            + (", biases corrected" if self.corrected else ""),
        ]
        if self.metric is not None:
            lines.append(f"metric: {self.metric:.6g} ({self.float_metric:.6g} in float)")
        lines.append(f"{'layer':40} {'alone':>8} {'in all':>8}")
        for x in sorted(self.layers, key=lambda x: x.local):
            name = f"{x.module or 'model'} ({x.name})"
            lines.append(f"{name:40} {x.local:8.1f} {x.total:8.1f}{'' if x.precision == 'int8' else '  kept in float'}")
        return "\n".join([*lines, *self.notes])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
