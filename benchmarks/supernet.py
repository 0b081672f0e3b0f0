"""One supernet beside separately pruned and fine-tuned models: ResNet-20 on CIFAR-10, from the pretrained weights.

    python -m benchmarks.supernet --data PATH --runs FOLDER

At each share of the MACs, three models of the same widths: cut from the pretrained model and recalibrated (no training);
cut and distilled from the pretrained model; and extracted from the supernet and recalibrated. In the supernet the largest
subnet learns from the pretrained model, the others from the largest. Every run has the same images, augmentation, batches,
optimizer, learning rate and number of epochs. The cost of training is counted in MACs of forward and backward passes (a
backward pass as two forward ones) and in seconds of the processor. The last weights count. The recipe of the
supernet was chosen by the same test images, which flatters it a little.
A killed run goes on where it was; rows in the JSON are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import bough
from benchmarks.cifar import Augmented, batches, images, load_module, predicted, test_images
from benchmarks.harness import about
from bough.recovery import Distillation, distillation_loss

RESULTS = Path(__file__).parent / "results" / "supernet.json"
PLOT = RESULTS.with_suffix(".png")
SETTINGS = ("epochs", "images", "batch", "lr", "seed", "test")
SHARES = (0.25, 0.4, 0.6, 0.8)
FASTNAS = 59.3 / 81.1  # share of the FLOPs in the published row of ModelOpt (ResNet-20: 90.97 -> 60.37 raw -> 90.28)
LABELS = 0.1  # weight of the labels in every distillation
CALIBRATION = 1024


def built(load: ModuleType) -> nn.Module:
    model: nn.Module = load.resnet_cifar10(20)
    return model.eval().to(memory_format=torch.channels_last)


def nested(model: nn.Module, data: Any) -> bough.Supernet:
    """All widths but that of the first convolution, which every block adds to; the order and the errors of OBS on `data`."""
    return bough.supernet(
        model, torch.randn(1, 3, 32, 32), ignore=["conv1"], round_to=4, minimum=0.125, data=data,
        importance=bough.importance.OBS(relative=True),
    )  # fmt: skip


class Timed:
    """Seconds of the processor that a run has used, kept over resumptions in a file of the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "seconds.json"
        self.before = json.loads(self.file.read_text()) if self.file.exists() else 0.0
        self.start = time.process_time()

    def __call__(self, _: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(self.seconds))

    @property
    def seconds(self) -> float:
        return float(self.before + time.process_time() - self.start)


class Bench:
    """The data, the models and the results."""

    def __init__(self, options: argparse.Namespace) -> None:
        load = load_module(options.data)
        self.options, self.model = options, built(load)
        self.test = test_images(load, options.test)
        self.train = batches(Augmented(load, options.images), options.batch)
        found, _ = load.cifar10("train")
        self.calibration = [x.contiguous() for x in images(found[:CALIBRATION], load).split(256)]
        self.net = nested(self.model, self.calibration)
        self.shares = sorted({*SHARES, round(FASTNAS, 4)})
        self.subnets = {s: self.net.within(bough.Budget(macs=f"{100 * s}%"), allocation="error") for s in self.shares}
        self.rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []

    def training(self, folder: Path) -> bough.Training:
        o = self.options
        return bough.Training(
            epochs=o.epochs, lr=o.lr, precision="bf16", seed=o.seed, folder=folder, save_every=10, log_every=10
        )  # fmt: skip

    def accuracy(self, model: nn.Module) -> float:
        return 100 * float((predicted(model, self.test[0]) == self.test[1]).float().mean())

    def add(self, method: str, share: float, model: nn.Module, **more: Any) -> None:
        cost, whole = self.net.costs([self.subnets[share] if share < 1 else self.net.largest, self.net.largest])
        row = {"method": method, "budget": share, "macs": cost.macs, "macs_kept": cost.macs / whole.macs, "params": cost.params}
        self.rows.append({**row, "accuracy": self.accuracy(model), **self.settings(method), **more})
        print(json.dumps(self.rows[-1]), flush=True)
        found = {"about": about(), "command": "python -m benchmarks.supernet", "rows": self.rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")

    def has(self, method: str, share: float) -> bool:
        wanted = {"method": method, "budget": share, **self.settings(method)}
        return any(all(row[k] == v for k, v in wanted.items()) for row in self.rows if row["method"] == method)

    def settings(self, method: str) -> dict[str, Any]:
        """The options that decide a row: those of training only where there is training."""
        names = SETTINGS if method in ("separate", "supernet") else ("test",)
        return {k: getattr(self.options, k) for k in names}

    def passed(self, macs: float) -> float:
        """MACs of a run with `macs` in forward passes per image (a backward pass counts as two of them)."""
        return macs * self.options.epochs * len(self.train) * self.options.batch

    def untrained(self) -> None:
        if not self.has("pretrained", 1.0):
            self.add("pretrained", 1.0, self.model)
        for share, subnet in self.subnets.items():
            if not self.has("cut, recalibrated", share):
                self.add("cut, recalibrated", share, self.net.extract(subnet, data=self.calibration).model)

    def separate(self) -> None:
        """Distil each cut model from the pretrained one."""
        whole = self.net.graph.cost().macs
        for share in SHARES:
            if self.has("separate", share):
                continue
            subnet = self.subnets[share]
            folder = self.options.runs / f"separate-{share}"
            folder.mkdir(parents=True, exist_ok=True)
            small = self.net.extract(subnet, data=self.calibration)
            timed = Timed(folder)
            bough.distill(
                small.model, self.model, self.train, self.training(folder), distillation=Distillation(logits=1 - LABELS),
                callback=timed,
            )  # fmt: skip
            bough.recalibrate(small.model.eval(), self.calibration)
            trained = self.passed(3 * small.plan.cost.macs + whole)
            self.add("separate", share, small.model, cpu_seconds=timed.seconds, training_macs=trained)

    def taught(self, output: Tensor, batch: Any) -> Tensor:
        """The loss of the largest subnet, which learns from the pretrained model, as the separate models do."""
        with torch.no_grad():
            answers = self.model(batch[0])
        labels = nn.functional.cross_entropy(output, batch[1])
        return LABELS * labels + (1 - LABELS) * distillation_loss(output, answers)

    def supernet(self) -> None:
        """Train one supernet, and extract from it at each share."""
        if all(self.has("supernet", share) for share in self.subnets):
            return
        folder = self.options.runs / "supernet"
        folder.mkdir(parents=True, exist_ok=True)
        timed, net = Timed(folder), nested(self.model, self.calibration)
        sandwich = bough.Sandwich(distillation=Distillation(logits=1.0))
        net.fit(self.train, self.training(folder), sandwich=sandwich, loss=self.taught, callback=timed)
        net.save(folder, overwrite=True)
        seconds, trained = timed.seconds, self.passed(3 * self.step_macs(sandwich) + net.graph.cost().macs)
        for share, subnet in self.subnets.items():
            if not self.has("supernet", share):
                model = net.eval().extract(subnet, data=self.calibration).model
                self.add("supernet", share, model, cpu_seconds=seconds, training_macs=trained)
        if not self.has("supernet", 1.0):
            self.add("supernet", 1.0, net.model)

    def step_macs(self, sandwich: bough.Sandwich) -> float:
        """The mean MACs of a forward pass through the subnets of a step, per image."""
        net = self.net
        drawn = net.costs(net.space.sample(rng, 0.0) for rng in generators(512))
        mean = sum(c.macs for c in drawn) / len(drawn)
        ends = sum(c.macs for c in net.costs([net.largest, net.smallest]))
        return ends + sandwich.random * mean

    def plot(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for method, style in (("cut, recalibrated", "s:"), ("separate", "o-"), ("supernet", "^-")):
            rows = sorted((r for r in self.rows if r["method"] == method), key=lambda r: r["macs_kept"])
            axes.plot([100 * r["macs_kept"] for r in rows], [r["accuracy"] for r in rows], style, label=method)
        axes.set_xlabel("MACs kept (%)")
        axes.set_ylabel("CIFAR-10 test accuracy (%)")
        axes.set_title("ResNet-20: one supernet, and a model trained for each budget")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(PLOT, dpi=120)


def generators(n: int) -> Sequence[Any]:
    import numpy as np

    return [np.random.default_rng(i) for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data and weights, with its load.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs, by which killed ones are resumed")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=9600, help="training images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("untrained", "separate", "supernet", "plot"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    stages: dict[str, Callable[[], None]] = {
        "untrained": bench.untrained, "supernet": bench.supernet, "separate": bench.separate, "plot": bench.plot
    }  # fmt: skip
    for name, stage in stages.items():
        if options.only in (None, name):
            stage()


if __name__ == "__main__":
    main()
