"""Models for microcontrollers as C: memory, firmware size and instructions, beside the arena that tflite-micro reports.

    python -m benchmarks.embedded --data PATH [--cmsis-nn FOLDER] [NAME ...]

The nets have the shapes of MLPerf Tiny's: the same .tflite models are in the folder of data, and arenas and instructions do not
depend on weights, which are random there. `dscnn` is trained here (see benchmarks.tasks); its accuracy is measured in float and
in int8. All inputs are real.
Needs make and a C compiler; with arm-none-eabi-gcc and qemu-system-arm firmware is built and run, with the package tflite_micro
its arenas are measured; nets without a .tflite are written as one by litert-torch, where that is there. A row is written for
each name; names that are in the file already are measured again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bough
from benchmarks.cifar import load_module, predicted, test_images
from benchmarks.harness import machine
from benchmarks.tasks import TASKS
from benchmarks.tasks.cifar_models import ResNet8
from benchmarks.tasks.speech import DSCNN, NoisyDigits, drawn
from bough.exporting.embedded import EmbeddedExport, export_embedded

RESULTS = Path(__file__).parent / "results" / "embedded.json"
INSTRUCTIONS = {"m4": 40.0, "m55": 31.25}  # per SysTick tick of QEMU's boards under -icount shift=0


class KeywordDSCNN(DSCNN):
    """The keyword spotter of MLPerf Tiny: 49 frames of 10 coefficients, 12 classes, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[0] = nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False)
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, 49, 10] to probabilities."""
        return super().forward(x).softmax(-1)


@dataclass(frozen=True)
class Case:
    """A net with real inputs, the .tflite of the same shapes if there is one, and test data if it is trained.

    The emulated boards run `board_runs` of the inputs.
    """

    model: nn.Module
    data: Tensor
    tflite: str | None = None
    test: tuple[Tensor, Tensor] | None = None
    board_runs: int = 100


class ChannelsLast(nn.Module):
    """A net of images whose channels come last, as tflite-micro stores them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, H, W, C] to what the net gives."""
        return self.net(x.permute(0, 3, 1, 2))


def cases(load: Any, folder: Path) -> dict[str, Callable[[], Case]]:
    """Return what is measured, by name."""

    def keywords() -> Case:
        features = np.load(folder / "kws01_eval" / "kws01_x_int8.npy").astype(np.float32)
        x = torch.from_numpy(features.reshape(len(features), 49, 10)) / 32
        return Case(KeywordDSCNN(), x[:500], "kws_ref_model.tflite")

    def resnet8() -> Case:
        return Case(ResNet8(), test_images(load, 500)[0], board_runs=10)  # its .tflite in the data is float32

    def dscnn() -> Case:
        task = TASKS["dscnn"](load, 3000)
        x = torch.cat([batch[0] for batch in task.calibration])
        found, truth = load.spoken_digits("test")
        test = drawn(NoisyDigits(found, torch.from_numpy(truth)), 1, seed=1)
        return Case(task.model, x, test=test)

    return {"mlperf_keywords": keywords, "mlperf_resnet8": resnet8, "dscnn": dscnn}


def firmware(made: EmbeddedExport, cmsis: Path | None, runs: int = 100) -> dict[str, Any]:
    """Build and run the folder on this machine and on emulated boards; return sizes and instructions per run.

    Args:
        cmsis: a checkout of CMSIS-NN, or None for the portable kernels alone.
        runs: recorded inputs that the boards run, at most.
    """
    found: dict[str, Any] = {"host": _make(made, "test")}
    if not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")):
        return found
    for kind, options in (("portable", []), *([("cmsis-nn", [f"CMSIS_NN={cmsis}"])] if cmsis else [])):
        for core, factor in INSTRUCTIONS.items():
            some = [f"VECTORS={runs}"] if runs < found["host"]["runs"] else []
            numbers = _make(made, f"qemu-{core}", *options, *some)
            numbers["instructions"] = round(numbers.pop("ticks_per_run") * factor)
            subprocess.run(["make", "-C", str(made.folder), f"size-{core}", *options], check=True, capture_output=True)
            elf = made.folder / "build" / kind / core / "model.elf"  # type: ignore[operator]
            text = subprocess.run(["arm-none-eabi-size", str(elf)], check=True, capture_output=True, text=True).stdout
            flash, _, ram = (int(n) for n in text.splitlines()[1].split()[:3])
            numbers |= {"flash": flash, "code": flash - made.flash, "static_ram": ram}
            found[f"{kind} {core}"] = numbers
    return found


def _make(made: EmbeddedExport, *goals: str) -> dict[str, int]:
    done = subprocess.run(["make", "-C", str(made.folder), *goals], capture_output=True, text=True)
    numbers = re.findall(r"^([a-z_]+) (-?\d+)$", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode not in (0, 2) or not numbers:
        raise RuntimeError(done.stderr[-2000:])
    return {name: int(value) for name, value in numbers}


def tflite_arena(path: Path) -> dict[str, int] | None:
    """Return the bytes of tflite-micro's arena after one run, in all and of its parts; None without the package.

    Raises:
        ValueError: the .tflite does not take int8.
    """
    try:
        from tflite_micro import runtime
    except ImportError:
        return None
    interpreter = runtime.Interpreter.from_file(str(path))
    details = interpreter.get_input_details(0)
    if np.dtype(details["dtype"]) != np.int8:
        raise ValueError(
            f"{path} takes {np.dtype(details['dtype'])}: an arena of int8 is only compared with that of an int8 .tflite"
        )
    interpreter.set_input(np.zeros(details["shape"], dtype=details["dtype"]), 0)
    interpreter.invoke()
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        for stream in (1, 2):  # the package prints from C++
            os.dup2(file.fileno(), stream)
        interpreter.print_allocations()
        for target, old in zip((1, 2), saved, strict=True):
            os.dup2(old, target)
        file.seek(0)
        text = file.read().decode()
    found = re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text)
    return {name: int(value) for name, value in found}


def converted(case: Case, path: Path) -> Path:
    """Write the net of a case as an int8 .tflite; its arena depends on shapes alone."""
    net, x = case.model, case.data[:100]
    if x.dim() == 4:
        net, x = ChannelsLast(net).eval(), x.permute(0, 2, 3, 1).contiguous()
    quantized = bough.quantize(net, x[:1], [x], observer="minmax", equalize=False, correct_bias=False)
    bough.export(quantized, x[:1], path)
    return path


def measured(case: Case, folder: Path, data: Path, cmsis: Path | None) -> dict[str, Any]:
    """Return the row of one case."""
    case.model.eval()
    with torch.no_grad():
        made = export_embedded(case.model, ((case.data[:1],), {}), folder, data=[case.data])
    row = {**made.to_dict(), **firmware(made, cmsis, case.board_runs)}
    row["arena_with_ports"] = made.arena.size + sum(row["input_bytes"]) + sum(row["output_bytes"])
    if case.test is not None:
        x, labels = case.test
        found = np.array([made.run(sample)[0].argmax() for sample in x.split(1)])
        row["accuracy_float"] = 100 * float((predicted(case.model, x) == labels).float().mean())
        row["accuracy_int8"] = 100 * float((found == labels.numpy()).mean())
    if case.tflite:
        row["tflite_micro_arena"] = tflite_arena(data / "mlperf_tiny" / case.tflite)
    elif importlib.util.find_spec("litert_torch"):
        row["tflite_micro_arena"] = tflite_arena(converted(case, folder / "net.tflite"))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--cmsis-nn", type=Path, help="a checkout of CMSIS-NN")
    given = parser.parse_args()
    torch.manual_seed(0)
    every = cases(load_module(given.data), given.data)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name in given.names or every:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measured(every[name](), Path(folder) / "c", given.data, given.cmsis_nn)
        print(name, json.dumps(rows[name]), flush=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "seed": 0, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
