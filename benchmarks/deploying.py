"""Accuracy at each step from a trained model to C: dense, pruned, INT8 in onnxruntime, C on this machine.

    python -m benchmarks.deploying --data PATH --work FOLDER [resnet20] [dscnn]

Runs the commands `bough prune`, `quantize` and `export` as a user would (half of the MACs, no training after the cut),
`make test` in the folder of C, and measures accuracy on 1,000 test samples. Steps whose output is in the work folder are not
run again. Needs torchao, onnx, onnxruntime, make and a C compiler; `dscnn` is trained on first use (see benchmarks.tasks).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import re
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bough
from benchmarks.cifar import load_module
from benchmarks.harness import ROOT, machine
from benchmarks.tasks import TASKS, Task

RESULTS = Path(__file__).parent / "results" / "deploying.json"
DATA = "BOUGH_BENCHMARK_DATA"  # the folder of data, for the functions that the command line imports
SAMPLES = 1000
SHAPES = {"resnet20": (1, 3, 32, 32), "dscnn": (1, 65, 16)}


@lru_cache
def task(name: str) -> Task:
    return TASKS[name](load_module(Path(os.environ[DATA])), SAMPLES)


def _model(name: str) -> nn.Module:
    return copy.deepcopy(task(name).model)  # `load` cuts the model that it is given in place


def _batches(name: str) -> list[Tensor]:
    return [batch[0] for batch in task(name).calibration]


resnet20, resnet20_batches = partial(_model, "resnet20"), partial(_batches, "resnet20")
dscnn, dscnn_batches = partial(_model, "dscnn"), partial(_batches, "dscnn")


class OnnxModel(nn.Module):
    """An ONNX file as a module."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))
        self.session = onnxruntime.InferenceSession(str(file))
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the first output."""
        return torch.from_numpy(self.session.run(None, {self.input: x.numpy()})[0])


class CModel(nn.Module):
    """A folder of C with one input and one output, built as a shared library, as a module."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))
        ports = json.loads((folder / "model.json").read_text())["ports"]
        (self.taken,), (self.given,) = ports["inputs"], ports["outputs"]
        library = (folder / "model.so").resolve()
        sources = [folder / "model.c", *sorted((folder / "kernels").glob("*.c"))]
        include = [f"-I{folder / inner}" for inner in (".", "include", "kernels")]
        subprocess.run(
            ["cc", "-std=c99", "-O2", "-shared", "-fPIC", *include, *map(str, sources), "-o", str(library)], check=True
        )
        self.run = ctypes.CDLL(str(library)).model_run

    def forward(self, x: Tensor) -> Tensor:
        """Return the real outputs [N, ...], one sample at a time."""
        return torch.cat([self._one(sample) for sample in x.split(1)])

    def _one(self, sample: Tensor) -> Tensor:
        port = self.taken
        stored = torch.round(sample.permute(port["memory_order"]) / port["scale"]) + port["zero_point"]
        taken = np.ascontiguousarray(stored.clamp(-128, 127).numpy().astype(np.int8))
        port = self.given
        shape = [port["shape"][d] for d in port["memory_order"]]
        result = np.zeros(shape, dtype=np.int8)
        status = self.run(taken.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p))
        if status:
            raise RuntimeError(f"model_run returned {status}")
        real = (result.astype(np.float32) - port["zero_point"]) * port["scale"]
        return torch.from_numpy(real.transpose(np.argsort(port["memory_order"])))


def commands(name: str, work: Path) -> None:
    """Run the command line from the model to the files, each step whose output is not there yet."""
    model, data = f"benchmarks.deploying:{name}", f"benchmarks.deploying:{name}_batches"
    shape = ["--input-shape", ",".join(map(str, SHAPES[name]))]
    small, int8 = str(work / "small"), str(work / "int8")
    steps = {
        "small": ["prune", model, *shape, "--budget", "macs=50%", "--data", data],
        "int8": ["quantize", model, data, *shape, "--checkpoint", small],
        "small.onnx": ["export", model, *shape, "--checkpoint", small, "--dynamic-batch"],
        "int8.onnx": ["export", model, *shape, "--quantized", int8, "--dynamic-batch"],
        "firmware": ["export", model, *shape, "--quantized", int8, "--target", "cortex-m", "--data", data],
    }
    for output, words in steps.items():
        if not (work / output).exists():
            subprocess.run([sys.executable, "-m", "bough", *words, "--out", str(work / output)], check=True, cwd=ROOT)


def measured(name: str, work: Path) -> dict[str, Any]:
    """Return accuracy at each step, sizes, and what `make test` says."""
    commands(name, work)
    firmware = work / "firmware"
    test = subprocess.run(["make", "-C", str(firmware), "test"], check=True, capture_output=True, text=True).stdout
    dense = task(name)
    small = bough.load(work / "small", partial(_model, name))
    models = {"dense": dense.model, "pruned": small, "onnx_int8": OnnxModel(work / "int8.onnx"), "c": CModel(firmware)}
    with torch.no_grad():
        found = {kind: dense.measure(model)[dense.metric] for kind, model in models.items()}
    sizes = json.loads((firmware / "model.json").read_text())
    return {
        "accuracy": found,
        "bytes": {
            "dense_float": 4 * sum(p.numel() for p in dense.model.parameters()),
            "pruned_float": 4 * sum(p.numel() for p in small.parameters()),
            "pruned_onnx": (work / "small.onnx").stat().st_size,
            "int8_onnx": (work / "int8.onnx").stat().st_size,
            "c_constants": sizes["constant_bytes"],
            "c_arena": sizes["arena_bytes"],
        },
        "c_test": {k: int(v) for k, v in re.findall(r"^(equal|argmax_equal|largest_difference) (\d+)$", test, re.MULTILINE)},
        "c_sqnr_db": sizes["sqnr_db"],
        "samples": SAMPLES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet20"], metavar="NAME", help="of resnet20 and dscnn")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--work", type=Path, required=True, help="the folder for what the commands write")
    given = parser.parse_args()
    os.environ[DATA] = str(given.data.resolve())
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name in given.names:
        work = given.work.resolve() / name
        work.mkdir(parents=True, exist_ok=True)
        rows[name] = measured(name, work)
        print(name, json.dumps(rows[name]), flush=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "seed": 0, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
