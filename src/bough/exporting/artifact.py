"""Exported files: run in a process of their own, compared with the model, and described by a value."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bough.errors import ExportError
from bough.measuring import Latency, Tensors

_PROCESS = Path(__file__).with_name("artifact_process.py")
_MISSING = re.compile(r"Missing operator: \[\d+\] (\S+)")  # of ExecuTorch
_LONGEST = 400  # characters of a runtime's message that an error shows


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that `bough.export` wrote, and what running it gave.

    Attributes:
        path: the file.
        format: "onnx", "pte" or "tflite".
        precision: "float" or "int8".
        size: bytes of the file, and of the file with its weights where these lie beside it.
        error: the largest difference between an output of the file and of the model, as a share of the largest absolute value
            of that output, or in INT8 of half of its range, if that is larger.
        signal_to_noise: the power of the outputs over that of the differences, in decibels; infinite if they are equal.
        latency: of one run on the example inputs, in the runtime, with as many threads as torch has.
        peak_memory: bytes that a process which loads and runs the file needs beyond the runtime itself; 0 if unknown.
        inputs, outputs: {name: shape}; a dim that may vary has a name in place of its size.
        notes: what is not as it was asked for, such as layers that stayed in float.
    """

    path: Path
    format: str
    precision: str
    size: int
    error: float
    signal_to_noise: float
    latency: Latency
    peak_memory: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        known = math.isfinite(self.signal_to_noise)
        return {**asdict(self), "path": str(self.path), "signal_to_noise": self.signal_to_noise if known else None}

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format}, {self.precision}, {self.size:,} bytes",
            f"largest error against the model: {self.error:.2e} of the output's range ({self.signal_to_noise:.1f} dB)",
            f"latency {self.latency}; peak memory {self.peak_memory / 2**20:.1f} MiB",
        ]
        for what, shapes in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{what} {name}: {', '.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items()]
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True)
class ArtifactRun:
    """What running a file gave: {name: output}, latency, and the bytes of memory at its peak."""

    outputs: dict[str, Tensor]
    latency: Latency
    peak_memory: int


def run_artifact(path: Path, inputs: Tensors, *, repeats: int = 0) -> ArtifactRun:
    """Run a file that `bough.export` wrote in a process of its own.

    Args:
        path: an .onnx, .pte or .tflite file.
        inputs: {name: tensor}, in the order of the file's inputs.
        repeats: timed runs, after the one whose outputs are returned; they end after two seconds.

    Raises:
        ExportError: the file is damaged, does not take these inputs, or the runtime can not run it.
    """
    with tempfile.TemporaryDirectory(prefix="bough-") as folder:
        given, found = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, **{name: _array(name, t) for name, t in inputs.items()})  # type: ignore[arg-type]
        command = [sys.executable, str(_PROCESS), str(path), str(given), str(found), str(repeats), str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
            missing = sorted({name for line in lines for name in _MISSING.findall(line)})
            said = f"it has no kernel of {', '.join(missing)}" if missing else lines[-1]
            raise ExportError(f"{path.name} can not be loaded and run by its runtime: {said[:_LONGEST]}")
        measured = json.loads(done.stdout.strip().splitlines()[-1])
        with np.load(found) as stored:
            outputs = {name: torch.from_numpy(stored[name].copy()) for name in stored.files}
    latency = Latency(measured["median"], measured["spread"], measured["repeats"])
    return ArtifactRun(outputs, latency, measured["peak"])


def _array(name: str, tensor: Tensor) -> np.ndarray:
    try:
        return tensor.detach().cpu().numpy()
    except TypeError:
        raise ExportError(
            f"the input {name} is {tensor.dtype}, which runtimes do not take: give the model in float32"
        ) from None
