"""LiteRT (TensorFlow Lite) files by litert-torch."""

from __future__ import annotations

import contextlib
import copy
import io
import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from bough.errors import ExportError
from bough.exporting.conversion import conversion
from bough.exporting.dynamic import DynamicDims
from bough.exporting.flat import FlatModel


def require_litert() -> None:
    """Raise an ExportError unless litert-torch and LiteRT's interpreter are there."""
    try:
        import ai_edge_litert  # noqa: F401
        import litert_torch  # noqa: F401
    except ImportError as error:
        raise ExportError(f"export to .tflite needs {error.name}: pip install bough[litert]") from None


def write_tflite(flat: FlatModel, examples: tuple[Tensor, ...], dims: DynamicDims, path: Path) -> None:
    """Write a model as a .tflite file of fixed shapes, its inputs and outputs in the order of the flat model's.

    A quantized program is written with integer operators; its inputs and outputs in the file are quantized integers.

    Raises:
        ExportError: a dim should vary, or litert-torch does not know an operator of the model, or fails.
    """
    if dims:
        raise ExportError(f"a .tflite file has fixed shapes, and dims of {', '.join(dims)} should vary: export it without them")
    import litert_torch

    made = _weights_quantized_in_place(flat)
    config = None if made is flat else _integer_kernels()
    out, err = io.StringIO(), io.StringIO()
    with conversion(flat, "a .tflite file"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        litert_torch.convert(made.eval(), examples, quant_config=config).export(str(path))


def _integer_kernels() -> Any:
    """Return the option by which litert-torch turns quantized operators into integer ones; without it they stay in float."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))


def _weights_quantized_in_place(flat: FlatModel) -> FlatModel:
    """Return a model whose INT8 weights are constants in float that the graph quantizes, as litert-torch expects them."""
    if not isinstance(flat.model, fx.GraphModule):
        return flat
    made = copy.deepcopy(flat)
    graph_module = made.model
    assert isinstance(graph_module, fx.GraphModule)
    decomposed = torch.ops.quantized_decomposed
    for node in graph_module.graph.nodes:
        if node.target is not decomposed.dequantize_per_channel.default or node.args[0].op != "get_attr":
            continue
        values, scales, zeros = (operator.attrgetter(str(n.target))(graph_module) for n in node.args[:3])
        real = decomposed.dequantize_per_channel(values, scales, zeros, *node.args[3:])
        name = f"{node.name}_float"
        graph_module.register_buffer(name, real)
        with graph_module.graph.inserting_before(node):
            weight = graph_module.graph.get_attr(name)
            quantized = graph_module.graph.call_function(
                decomposed.quantize_per_channel.default, (weight, node.args[1], node.args[2], *node.args[3:])
            )
        node.replace_input_with(node.args[0], quantized)
    graph_module.recompile()
    return made
