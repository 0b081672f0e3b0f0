"""INT8: after training, by measured ranges; and simulated, to be trained."""

from bough.quantization.quantize import quantize
from bough.quantization.quantized import Quantized, QuantizedLayer
from bough.quantization.saved import load_quantized, save_quantized

__all__ = ["Quantized", "QuantizedLayer", "load_quantized", "quantize", "save_quantized"]
