"""INT8: after training, by measured ranges."""

from bough.quantization.quantize import quantize
from bough.quantization.quantized import Quantized, QuantizedLayer

__all__ = ["Quantized", "QuantizedLayer", "quantize"]
