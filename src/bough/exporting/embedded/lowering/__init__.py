"""From a float graph with quantization parameters to the integer program: one file per family of operators."""

from bough.exporting.embedded.lowering import attention, convolution, elementwise, linear, pooling, resizing, shapes
from bough.exporting.embedded.lowering.context import Value
from bough.exporting.embedded.lowering.lower import lower

__all__ = ["Value", "attention", "convolution", "elementwise", "linear", "lower", "pooling", "resizing", "shapes"]
