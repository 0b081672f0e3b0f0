"""ONNX files by torch's exporter, opset 18."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from bough.errors import ExportError
from bough.exporting.conversion import conversion
from bough.exporting.dynamic import DynamicDims
from bough.exporting.flat import FlatModel
from bough.exporting.onnx_qdq import translations, use_unsigned_integers

OPSET = 18
_WHOLE = 1_500_000_000  # bytes of weights that one file holds; protobuf ends at 2 GiB


def require_onnx() -> None:
    """Raise an ExportError unless the packages that ONNX export needs are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"export to ONNX needs {error.name}: pip install bough[onnx]") from None


def write_onnx(program: ExportedProgram, flat: FlatModel, dims: DynamicDims, path: Path) -> None:
    """Write a program as an ONNX file, with its weights in the file, or in a second file beside it if they are large.

    Raises:
        ExportError: torch's exporter does not know an operator of the model, or fails.
    """
    with conversion(flat, "ONNX"):
        made: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(flat.input_names),
            output_names=list(flat.output_names), custom_translation_table=translations(), verbose=False,
        )  # fmt: skip
    use_unsigned_integers(made.model)
    _name_dims(made.model, dims)
    made.model.graph.sort()
    _drop_unused(made.model)
    _drop_origins(made.model)
    size = sum(value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value is not None)
    made.save(str(path), external_data=size > _WHOLE)


def _drop_unused(model: Any) -> None:
    """Remove weights that no node reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del model.graph.initializers[name]


def _drop_origins(model: Any) -> None:
    """Remove what torch notes of each node's origin: stack traces with paths of this machine, larger than small models."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def _name_dims(model: Any, dims: DynamicDims) -> None:
    """Give symbolic sizes the names that the user chose, in all shapes of the graph."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for dim, name in dims.get(value.name, {}).items():
            symbol = getattr(value.shape[dim], "value", None)
            if isinstance(symbol, str):
                names.setdefault(symbol, name)
    values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:  # shapes may be frozen, so each is made again
            value.shape = type(value.shape)([_renamed(size, names) for size in value.shape])


def _renamed(size: Any, names: dict[str, str]) -> Any:
    symbol = getattr(size, "value", None)
    return re.sub(r"\w+", lambda match: names.get(match[0], match[0]), symbol) if isinstance(symbol, str) else size
