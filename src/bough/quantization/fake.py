"""Simulated quantization: modules that round to INT8 in float arithmetic, with gradients. Imported only with torchao."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

from bough.torch_internals import learned_fake_quantize

_TINY = 1e-12


class _Quantization(FakeQuantizeBase):  # type: ignore[misc]
    """Round to integers of a scale and zero point, which are buffers and change only where they are set."""

    scale: Tensor
    zero_point: Tensor
    is_dynamic = False
    ch_axis = -1

    def __init__(
        self, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, is_dynamic: bool = False
    ) -> None:
        super().__init__()
        self.dtype, self.quant_min, self.quant_max, self.qscheme = dtype, quant_min, quant_max, qscheme
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.enabled = True

    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return (scale, zero point), which PT2E's conversion asks for."""
        return self.scale.detach(), self.zero_point


class ActivationQuantization(_Quantization):
    """One scale and zero point for a tensor; training learns the scale, by its logarithm.

    Source: Esser et al., Learned Step Size Quantization (2020), for the gradient and its factor.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def set_range(self, scale: float, zero_point: int) -> None:
        """Set the scale and the zero point."""
        with torch.no_grad():
            self.log_scale.fill_(math.log(scale))
            self.zero_point.fill_(zero_point)

    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return (scale, zero point), which PT2E's conversion asks for."""
        return self.log_scale.detach().exp(), self.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor rounded to what INT8 represents."""
        if not self.enabled:
            return x
        scale = self.log_scale.exp()
        if not torch.is_grad_enabled():
            return torch.fake_quantize_per_tensor_affine(x, scale, self.zero_point, self.quant_min, self.quant_max)
        factor = 1 / math.sqrt(x.numel() * self.quant_max)
        return learned_fake_quantize(x, scale, self.zero_point.float(), self.quant_min, self.quant_max, factor)


class PerChannelWeightQuantization(_Quantization):
    """A scale for each channel of a weight, which follows the weight: its largest absolute value is the largest integer."""

    def __init__(self, ch_axis: int, **options: Any) -> None:
        super().__init__(**options)
        self.ch_axis = ch_axis

    def _scales(self, weight: Tensor) -> Tensor:
        dims = [d for d in range(weight.dim()) if d != self.ch_axis]
        return (weight.detach().abs().amax(dims) / self.quant_max).clamp_min(_TINY)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight rounded to what INT8 represents."""
        scales = self._scales(x)
        if self.scale.shape != scales.shape:
            self.scale = scales
            self.zero_point = torch.zeros(len(scales), dtype=torch.int32, device=scales.device)
        else:
            self.scale.copy_(scales)
        if not self.enabled:
            return x
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
        )
