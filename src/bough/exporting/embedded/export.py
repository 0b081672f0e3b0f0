"""Export a model to a folder of C for a microcontroller."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bough.errors import ExportError
from bough.exporting.embedded.arena import Arena
from bough.exporting.embedded.c_source import described, header, source, vectors
from bough.exporting.embedded.errors_by_op import LEAST_SQNR, low_sqnr_warning, ratio
from bough.exporting.embedded.fixed_point import dequantized, quantized
from bough.exporting.embedded.folder import write_folder
from bough.exporting.embedded.lowered import lowered
from bough.exporting.embedded.observing import Inputs, samples
from bough.exporting.embedded.program import Port, Program
from bough.exporting.embedded.simulate import run_program
from bough.tracing.capture.tree import tensors_within

_VECTORS = 100
_VECTOR_BYTES = 2 << 20  # of recorded inputs and outputs; the memory of the emulated boards holds these and the model


@dataclass(frozen=True, slots=True)
class EmbeddedExport:
    """A model as an integer program, where its activations lie, and how near it is to the model.

    Attributes:
        program: ops with integer weights; `run` runs it in numpy, bit for bit as the C code does.
        arena: offsets and size of the static arena.
        calibrated: operators whose quantization parameters data decided.
        folder: the folder of C, if one was written.
        flash: bytes of constants (weights, biases, multipliers, tables) in the C code.
        sqnr: signal to quantization noise in decibels of the outputs against the model in float, on the recorded inputs.
        agreement: share of recorded inputs on which the largest output is the same as the model's.
        warnings: what makes the program useless as it is: a ratio below LEAST_SQNR, with the first operator that causes it.
    """

    program: Program
    arena: Arena
    calibrated: tuple[str, ...]
    folder: Path | None
    flash: int
    sqnr: float
    agreement: float
    warnings: tuple[str, ...] = ()

    def run(self, *inputs: Tensor | NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the integer program on real inputs in PyTorch's shapes, and return real outputs in PyTorch's shapes."""
        given = [packed(port, np.asarray(x)) for port, x in zip(self.program.inputs, inputs, strict=True)]
        results = run_program(self.program, given)
        return [unpacked(port, r) for port, r in zip(self.program.outputs, results, strict=True)]

    def __str__(self) -> str:
        """Return sizes and error in a few lines."""
        return "".join(f"warning: {text}\n" for text in self.warnings) + (
            f"{self.folder}: C99, int8, {self.flash:,} bytes of constants, {self.arena.size:,} bytes of arena\n"
            f"{self.sqnr:.1f} dB against the model; same largest output on {self.agreement:.1%} of the test vectors\n"
            f"run `make -C {self.folder} test` to compare the C code with the integer reference"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return sizes and error as JSON."""
        return {
            "arena_bytes": self.arena.size,
            "constant_bytes": self.flash,
            "input_bytes": [port.tensor.size for port in self.program.inputs],
            "output_bytes": [port.tensor.size for port in self.program.outputs],
            "ops": len(self.program.ops),
            "sqnr_db": self.sqnr if np.isfinite(self.sqnr) else None,
            "argmax_agreement": self.agreement,
            "calibrated": list(self.calibrated),
            "warnings": list(self.warnings),
        }


def packed(port: Port, values: NDArray[Any]) -> NDArray[np.int8]:
    """Return real values of an input as int8 in the order of memory that the C code takes."""
    return quantized(values.reshape(port.shape).transpose(port.order), port.tensor.quantization).reshape(-1)


def unpacked(port: Port, values: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return int8 values of an output as real ones in PyTorch's shape."""
    shaped = values.reshape([port.shape[d] for d in port.order]).transpose(np.argsort(port.order))
    return dequantized(shaped, port.tensor.quantization)


def export_embedded(
    model: nn.Module,
    inputs: Inputs,
    folder: str | Path | None,
    *,
    data: Iterable[Any] | None = None,
    overwrite: bool = False,
) -> EmbeddedExport:
    """Write a model as C99 with int8 arithmetic, and return the program with its sizes and its error.

    Args:
        model: a float model, or one that PT2E has quantized.
        inputs: positional and keyword example inputs; their shapes, batch included, are those of the C function.
        folder: where the C goes; None to only make the program.
        data: batches of real inputs. They decide the quantization parameters that the model does not have, and up to 100 of
            their samples are recorded as the test vectors of the folder; without data the example inputs are.
        overwrite: replace a folder that an earlier export wrote.

    Raises:
        ExportError: an operator that has no integer kernel (named with module and line), or parameters that need data.
        WriteError: the folder exists or can not be written. In all cases nothing is left half written.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> made = export_embedded(net, ((torch.randn(1, 1, 8, 8),), {}), None, data=[torch.randn(8, 1, 8, 8)])
        >>> made.arena.size
        144
    """
    training = model.training
    model.eval() if not _exported(model) else None
    try:
        batches = None if data is None else list(data)
        made = lowered(model, inputs, batches)
        program, arena = made.program, made.arena
        recorded = _recorded(model, inputs, batches, program)
        given = [[packed(port, np.asarray(x)) for port, x in zip(program.inputs, run, strict=True)] for run in recorded]
        results = [run_program(program, run) for run in given]
        sqnr, agreement = _error(model, inputs, recorded, program, results)
        warnings = (low_sqnr_warning(made.reading, program, made.values, recorded[0], sqnr),) if sqnr < LEAST_SQNR else ()
    finally:
        if not _exported(model):
            model.train(training)
    text, writer = source(program, arena)
    exported = EmbeddedExport(
        program, arena, made.calibrated, None if folder is None else Path(folder), writer.constants.bytes, sqnr, agreement,
        warnings,
    )  # fmt: skip
    if folder is not None:
        head, body = vectors(program, given, results)
        generated = {
            "model.h": header(program, arena), "model.c": text, "test/vectors.h": head, "test/vectors.c": body,
            "model.json": json.dumps({**exported.to_dict(), "ports": _ports(program)}, indent=1) + "\n",
        }  # fmt: skip
        write_folder(Path(folder), generated, writer.kernels, overwrite=overwrite)
    return exported


def _exported(model: nn.Module) -> bool:
    """Tell whether a module is a graph of torch.export, which refuses `eval()`."""
    return isinstance(model, torch.fx.GraphModule)


def _recorded(model: nn.Module, inputs: Inputs, batches: Sequence[Any] | None, program: Program) -> list[tuple[Any, ...]]:
    """Return up to 100 sets of real inputs, and no more than fit on the emulated boards."""
    if batches is None:
        return [(*inputs[0], *inputs[1].values())]
    size = sum(port.tensor.size for port in (*program.inputs, *program.outputs))
    return list(itertools.islice(samples(model, inputs, batches), max(1, min(_VECTORS, _VECTOR_BYTES // size))))


def _error(
    model: nn.Module,
    inputs: Inputs,
    recorded: Sequence[tuple[Any, ...]],
    program: Program,
    results: Sequence[Sequence[NDArray[np.int8]]],
) -> tuple[float, float]:
    """Return SQNR in dB and agreement of the largest output, against the model in float."""
    args, kwargs = inputs
    signal = noise = 0.0
    same = 0
    for run, result in zip(recorded, results, strict=True):
        with torch.no_grad():
            expected = list(tensors_within(model(*run[: len(args)], **dict(zip(kwargs, run[len(args) :], strict=True)))))
        if len(expected) != len(program.outputs):
            raise ExportError(f"the model returns {len(expected)} tensors, the exported graph {len(program.outputs)}")
        for port, values, truth in zip(program.outputs, result, expected, strict=True):
            real, wanted = unpacked(port, values).astype(np.float64), truth.double().numpy()
            signal += float((wanted**2).sum())
            noise += float(((real - wanted) ** 2).sum())
        same += int(unpacked(program.outputs[0], result[0]).argmax() == expected[0].numpy().argmax())
    return ratio(signal, noise), same / max(1, len(recorded))


def _ports(program: Program) -> Mapping[str, Any]:
    return {
        kind: [
            {
                "name": port.name, "shape": port.shape, "memory_order": port.order, "memory": described(port),
                "scale": port.tensor.quantization.scale, "zero_point": port.tensor.quantization.zero_point,
            }
            for port in ports
        ]
        for kind, ports in (("inputs", program.inputs), ("outputs", program.outputs))
    }  # fmt: skip
