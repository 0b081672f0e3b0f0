"""Lottery tickets: winning ticket, random ticket and the whole net, epoch by epoch.

    python -m benchmarks.tickets --tasks digits
    python -m benchmarks.tickets --tasks resnet20 --data PATH

Iterative magnitude pruning that rewinds to the weights of an early epoch (Frankle et al., 2020). The random ticket keeps as
many weights in each layer, at random places, and starts from the same weights. `digits`: a small CNN on scikit-learn's
handwritten digits; `resnet20`: CIFAR-10 from random weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cifar import Augmented, batches, load_module, predicted, test_images
from benchmarks.harness import about
from bough import recovery

RESULTS = Path(__file__).parent / "results" / "tickets.json"


@dataclass(frozen=True)
class Task:
    """What is trained on what: `early` epochs before the weights to rewind to, then `training` in each round."""

    model: Callable[[], nn.Module]
    data: DataLoader[Any]
    test: tuple[Tensor, Tensor]
    early: int
    training: recovery.Training
    keep: float
    rounds: int


def digits(given: argparse.Namespace) -> Task:
    from sklearn.datasets import load_digits

    found, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(found))
    x = torch.from_numpy(found[order]).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels[order]).long()

    def model() -> nn.Module:
        widths = (1, 32, 64)
        layers = [m for i, o in pairwise(widths) for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 10))

    training = recovery.Training(epochs=given.epochs or 10, lr=0.02, optimizer="sgd", weight_decay=1e-4, clip=None)
    data = DataLoader(TensorDataset(x[:1200], y[:1200]), 32, shuffle=True)
    return Task(model, data, (x[1200:], y[1200:]), 1, training, 0.05, 4)


def resnet20(given: argparse.Namespace) -> Task:
    load = load_module(given.data)
    training = recovery.Training(
        epochs=given.epochs or 6, lr=0.1, optimizer="sgd", weight_decay=5e-4, precision="bf16", clip=None
    )  # fmt: skip
    make = lambda: load.CifarResNet(20).to(memory_format=torch.channels_last)  # noqa: E731
    return Task(make, batches(Augmented(load)), test_images(load, 2000), 1, training, 0.1, 2)


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"digits": digits, "resnet20": resnet20}


def run(task: Task, seed: int) -> dict[str, Any]:
    """{share kept: {"ticket" and "random": [accuracy after each epoch]}}, the whole net under 100 %."""
    torch.manual_seed(seed)
    model, (x, y) = task.model(), task.test
    before = recovery.Training(
        epochs=task.early, lr=task.training.lr, optimizer="sgd", schedule="constant", clip=None, seed=seed
    )
    recovery.finetune(model, task.data, before)

    def train(model: nn.Module, sparse: recovery.Sparse) -> list[float]:
        found: list[float] = []

        def report(line: dict[str, Any]) -> None:
            if line["step"] % len(task.data) == 0:
                found.append(100 * float((predicted(model, x) == y).float().mean()))
                print(f"seed {seed} {recovery.kept_share(sparse.masks) if sparse.masks else 1:.3f} {found[-1]:.2f}", flush=True)

        recovery.finetune(model, task.data, task.training, regularizers=[sparse], callback=report)
        return found

    tickets = recovery.find_tickets(model, train, keep=task.keep, rounds=task.rounds, seed=seed)
    return {f"{t.kept:.1%}": {"ticket": t.result, **({"random": t.control} if t.control else {})} for t in tickets}


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy by epoch, a panel for each task and share kept, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max(len(r["seeds"]["0"]) for r in results.values()) - 1
    figure, axes = pyplot.subplots(len(results), most, figsize=(3.2 * most, 2.8 * len(results)), squeeze=False)
    for row, (name, result) in zip(axes, results.items(), strict=True):
        for panel in row[len(result["seeds"]["0"]) - 1 :]:
            panel.set_visible(False)
        for panel, share in zip(row, list(result["seeds"]["0"])[1:], strict=False):
            for seed, found in result["seeds"].items():
                lines = {"whole": found["100.0%"]["ticket"], "ticket": found[share]["ticket"], "random": found[share]["random"]}
                for (kind, line), color in zip(lines.items(), ("black", "tab:green", "tab:red"), strict=True):
                    panel.plot(range(1, len(line) + 1), line, color=color, alpha=0.7, label=kind if seed == "0" else None)
            panel.set_title(f"{name}, {share} kept", fontsize=9)
            panel.set_xlabel("epoch")
        row[0].set_ylabel("test accuracy, %")
        row[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds load.py")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.tasks:
        task = TASKS[name](given)
        result = results.setdefault(name, {"epochs": task.training.epochs, "seeds": {}})
        for seed in map(str, given.seeds):
            if seed not in result["seeds"]:
                result["seeds"][seed] = run(task, int(seed))
                result["about"] = about()
                given.out.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
