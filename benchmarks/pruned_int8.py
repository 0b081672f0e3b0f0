"""Pruned networks in INT8 as C: accuracy, memory, firmware and instructions at 50 % and 25 % of the MACs, beside dense ones.

    python -m benchmarks.pruned_int8 --data PATH --work FOLDER [dscnn] [resnet8] [unet] [mobilenetv1_cifar]

Each network is that of a benchmark task. `bough.Pipeline` prunes it, distills it from the dense one or from a larger network,
quantizes it, in some recipes with training in INT8, and writes C and ONNX; the dense one is quantized after training. The best
epoch of each training is chosen on validation data, and the metric is measured on test data, which chooses nothing. The C runs
100 real inputs (fewer where they are large) on this machine and, where arm-none-eabi-gcc and qemu-system-arm are there, on
emulated Cortex-M4 and Cortex-M55 boards with the portable kernels. A killed run goes on in the work folder. Needs torchao,
onnx, onnxruntime, make and a C compiler.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bough
from benchmarks.cifar import batches, load_module
from benchmarks.deploying import CModel
from benchmarks.embedded import firmware
from benchmarks.harness import about
from benchmarks.tasks import TASKS, Task
from bough.exporting import EmbeddedExport, export_embedded
from bough.pipeline import Distill, Export, PipelineResult, Prune, Quantize, Stage
from bough.quantization import weight_bytes
from bough.recovery import Distillation, Training

RESULTS = Path(__file__).parent / "results" / "pruned_int8.json"
SHARES = ("100%", "50%", "25%")
CALIBRATION = 8  # batches


@dataclass(frozen=True)
class Recipe:
    """How a network is trained after the cut and in INT8.

    Attributes:
        epochs, lr: of distillation after the cut.
        int8_epochs, int8_lr: of distillation in INT8; 0 epochs: quantized after training alone.
        batch: samples of a batch.
        test: test samples, at most.
        board_runs: recorded inputs that the emulated boards run.
        precision, optimizer, weight_decay: of the distillation after the cut, as of `bough.Training`.
        teacher: the task whose model teaches after the cut; the dense model itself by default.
    """

    epochs: int
    lr: float
    int8_epochs: int
    int8_lr: float
    batch: int = 64
    test: int = 10_000
    board_runs: int = 100
    precision: str = "no"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    teacher: str | None = None

    def training(self) -> Training:
        """Return the options of the distillation after the cut."""
        return Training(
            epochs=self.epochs, lr=self.lr, batch_size=self.batch, precision=self.precision, optimizer=self.optimizer,
            weight_decay=self.weight_decay,
        )  # fmt: skip


RECIPES = {
    "dscnn": Recipe(16, 2e-3, 5, 3e-4, test=3000),
    "resnet8": Recipe(
        60, 0.1, 0, 3e-4, batch=128, board_runs=20, precision="bf16", optimizer="sgd", weight_decay=1e-4, teacher="resnet20"
    ),
    "resnet8_mlperf": Recipe(16, 2e-3, 1, 3e-4, batch=128, board_runs=20, precision="bf16"),
    "unet": Recipe(6, 2e-3, 2, 3e-4, batch=16, board_runs=3),
    "mobilenetv1_cifar": Recipe(12, 2e-3, 1, 3e-4, batch=128, board_runs=10),
}


class Measured(nn.Module):
    """A program in INT8 with a parameter, by which the tasks find the device of a model."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program, self.place = program, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the program's output."""
        return self.program(x)


def stages(share: str, recipe: Recipe, ignore: tuple[str, ...], teacher: Callable[[], nn.Module] | None) -> list[Stage]:
    """Return the stages for a share of the MACs."""
    if share == "100%":
        return [Quantize(), Export("firmware", target="cortex-m"), Export("int8.onnx")]
    distillation = Distillation(temperature=4.0, logits=0.9)
    return [
        Prune(bough.Budget(macs=share), ignore=ignore),
        Distill(recipe.training(), distillation, teacher),
        _quantize(recipe, distillation),
        Export("firmware", target="cortex-m"),
        Export("int8.onnx"),
    ]


def _quantize(recipe: Recipe, distillation: Distillation) -> Quantize:
    if not recipe.int8_epochs:
        return Quantize()
    training = Training(epochs=recipe.int8_epochs, lr=recipe.int8_lr, batch_size=recipe.batch)
    return Quantize(training=training, distillation=distillation)


def piped(task: Task, share: str, recipe: Recipe, folder: Path, teacher: Callable[[], nn.Module] | None) -> PipelineResult:
    """Run the pipeline for a share of the MACs, or read what it left."""
    found = (
        task.train_set()
        if task.train_set
        else TensorDataset(*(torch.cat(part) for part in zip(*task.calibration, strict=True)))
    )
    data = [batch[0] for batch in task.calibration[:CALIBRATION]]
    pipeline = bough.Pipeline(
        lambda: copy.deepcopy(task.model), stages(share, recipe, task.ignore, teacher), data[0][:1],
        train=batches(found, recipe.batch), data=data, loss=task.output_loss,
        evaluate=lambda model: task.choose(Measured(model)),
    )  # fmt: skip
    return pipeline.run(folder)


def row(
    task: Task, share: str, recipe: Recipe, folder: Path, teacher: Callable[[], nn.Module] | None
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of one share of the MACs."""
    done = piped(task, share, recipe, folder, teacher)
    assert done.quantized is not None
    data = [batch[0] for batch in task.calibration[:CALIBRATION]]
    made = export_embedded(done.quantized, ((data[0][:1],), {}), folder / "firmware", data=data, overwrite=True)
    exported = next(s.details for s in done.stages if s.details.get("file") == "int8.onnx")
    found: dict[str, Any] = {
        "macs": done.stages[-3].cost["macs"], "params": done.stages[-3].cost["params"],
        "weight_bytes": weight_bytes(done.quantized), "onnx_bytes": exported["size"],
        "onnx_latency_ms": 1e3 * exported["latency"]["median"],
        "int8": task.measure(Measured(done.quantized))[task.metric], **sizes(made),
        "firmware": firmware(made, None, recipe.board_runs),
        "stages": [{"name": s.name, "validation": s.metric, "seconds": s.seconds} for s in done.stages],
    }  # fmt: skip
    if share != "100%":
        found["float"] = task.measure(done.model)[task.metric]
    found["c"] = task.measure(CModel(folder / "firmware"))[task.metric]
    return found


def sizes(made: EmbeddedExport) -> dict[str, Any]:
    """Return what an export to C says of itself."""
    fields = made.to_dict()
    return {k: fields[k] for k in ("arena_bytes", "constant_bytes", "sqnr_db", "argmax_agreement", "warnings")}


def _teacher(name: str, load: ModuleType) -> nn.Module:
    return TASKS[name](load, 1).model.to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["dscnn"], metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=SHARES)
    parser.add_argument("--epochs", type=int, help="of the distillation, in place of the recipe's")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--work", type=Path, required=True, help="the folder for the runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name in given.names:
        recipe = replace(RECIPES[name], epochs=given.epochs or RECIPES[name].epochs)
        load = load_module(given.data)
        task = TASKS[name](load, recipe.test)
        teacher = None if recipe.teacher is None else partial(_teacher, recipe.teacher, load)
        task_rows = rows.setdefault(name, {})
        task_rows |= {"metric": task.metric, "seed": 0}
        task_rows["dense_float"] = task.measure(task.model)
        for share in given.shares:
            task_rows[share] = (
                about()
                | {"recipe": vars(recipe)}
                | row(task, share, recipe, given.work / name / share.removesuffix("%"), teacher)
            )
            print(name, share, json.dumps(task_rows[share]), flush=True)
            RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
