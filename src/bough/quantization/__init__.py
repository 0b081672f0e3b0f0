"""INT8: after training, by measured ranges; simulated, to be trained; and of linear layers alone, without data."""

from bough.quantization.linear import LinearQuantized, quantize_linear
from bough.quantization.qat import QAT
from bough.quantization.quantize import quantize, weight_bytes
from bough.quantization.quantized import Quantized, QuantizedLayer
from bough.quantization.saved import load_quantized, save_quantized
from bough.quantization.torchao_import import require_torchao

__all__ = [
    "QAT", "LinearQuantized", "Quantized", "QuantizedLayer", "load_quantized", "quantize", "quantize_linear", "require_torchao",
    "save_quantized", "weight_bytes",
]  # fmt: skip
