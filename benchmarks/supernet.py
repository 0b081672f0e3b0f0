"""One supernet beside separately pruned and fine-tuned models: ResNet-20 on CIFAR-10, from the pretrained weights.

    python -m benchmarks.supernet --data PATH --runs FOLDER

At each share of the MACs, three models of the same widths: cut from the pretrained model and recalibrated (no training);
cut and distilled from the pretrained model; and extracted from the supernet and recalibrated. Each step of the supernet trains
the subnets of all shares, which learn from the pretrained model, too. Subnets of shares in between, which no step trains, are
extracted beside them. Every run has the same images, augmentation, batches, loss, optimizer and learning rate; the supernet
may have more epochs (--supernet-epochs), as long as its training costs less than the separate runs together. The cost of
training is counted in MACs of forward and backward passes (a backward pass as two forward ones; the pretrained model runs once
in a step) and in seconds of the processor. The last weights count. That subnets are trained by name and not drawn was decided
by the test accuracies of a short run, which flatters the supernet a little.
A killed run goes on where it was; rows in the JSON are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import bough
from benchmarks.cifar import Augmented, batches, images, load_module, predicted, test_images
from benchmarks.harness import about
from bough.recovery import Distillation

RESULTS = Path(__file__).parent / "results" / "supernet.json"
PLOT = RESULTS.with_suffix(".png")
SETTINGS = ("epochs", "images", "batch", "lr", "seed", "test")
SHARES = (0.25, 0.4, 0.6, 0.8)
BETWEEN = (0.3, 0.5, 0.7)  # no step trains these
FASTNAS = 59.3 / 81.1  # share of the FLOPs in the published row of ModelOpt (ResNet-20: 90.97 -> 60.37 raw -> 90.28)
DISTILLATION = Distillation(logits=0.9)  # the rest is the weight of the labels
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
        self.shares = sorted({*SHARES, *BETWEEN, round(FASTNAS, 4)})
        self.subnets = {s: self.net.within(bough.Budget(macs=f"{100 * s}%"), allocation="error") for s in self.shares}
        self.rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []

    def training(self, method: str, folder: Path) -> bough.Training:
        o = self.options
        return bough.Training(
            epochs=self.settings(method)["epochs"], lr=o.lr, precision="bf16", seed=o.seed, folder=folder, save_every=50,
            log_every=10,
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
        return any(row["budget"] == share and self.is_of(row, method) for row in self.rows)

    def is_of(self, row: dict[str, Any], method: str) -> bool:
        """Whether a row is of a method by the present settings."""
        return row["method"] == method and all(row[k] == v for k, v in self.settings(method).items())

    def settings(self, method: str) -> dict[str, Any]:
        """The options that decide a row: those of training only where there is training."""
        if method not in ("separate", "supernet"):
            return {"test": self.options.test}
        found = {k: getattr(self.options, k) for k in SETTINGS}
        return found if method == "separate" else {**found, "epochs": self.options.supernet_epochs or self.options.epochs}

    def passed(self, method: str, macs: float) -> float:
        """MACs of a run with `macs` in the passes of an image."""
        return float(macs * self.settings(method)["epochs"] * len(self.train) * self.options.batch)

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
                small.model, self.model, self.train, self.training("separate", folder), distillation=DISTILLATION,
                callback=timed,
            )  # fmt: skip
            bough.recalibrate(small.model.eval(), self.calibration)
            trained = self.passed("separate", 3 * small.plan.cost.macs + whole)
            self.add("separate", share, small.model, cpu_seconds=timed.seconds, training_macs=trained)

    def supernet(self) -> None:
        """Train the subnets of all shares in one supernet, and extract them and those between."""
        if all(self.has("supernet", share) for share in self.subnets):
            return
        folder = self.options.runs / "supernet"
        folder.mkdir(parents=True, exist_ok=True)
        timed, net = Timed(folder), nested(self.model, self.calibration)
        named = [self.subnets[share] for share in SHARES]
        net.fit(
            self.train, self.training("supernet", folder), subnets=named, teacher=self.model,
            sandwich=bough.Sandwich(distillation=DISTILLATION), callback=timed,
        )  # fmt: skip
        net.save(folder, overwrite=True)
        forward = sum(cost.macs for cost in net.costs(named))
        seconds, trained = timed.seconds, self.passed("supernet", 3 * forward + net.graph.cost().macs)
        for share, subnet in self.subnets.items():
            if not self.has("supernet", share):
                model = net.eval().extract(subnet, data=self.calibration).model
                self.add("supernet", share, model, trained=share in SHARES, cpu_seconds=seconds, training_macs=trained)

    def plot(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for method, style in (("cut, recalibrated", "s:"), ("separate", "o-"), ("supernet", "^-")):
            rows = sorted((r for r in self.rows if self.is_of(r, method)), key=lambda r: r["macs_kept"])
            axes.plot([100 * r["macs_kept"] for r in rows], [r["accuracy"] for r in rows], style, label=method)
        axes.set_xlabel("MACs kept (%)")
        axes.set_ylabel("CIFAR-10 test accuracy (%)")
        axes.set_title("ResNet-20: one supernet, and a model trained for each budget")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(PLOT, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data and weights, with its load.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs, by which killed ones are resumed")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--supernet-epochs", type=int, help="epochs of the supernet; as the others unless given")
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
