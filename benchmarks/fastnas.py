"""ResNet-20 on CIFAR-10 at the share of the MACs of ModelOpt's published FastNAS row, with no training and after some.

    python -m benchmarks.fastnas --data PATH --runs FOLDER

The cut is the shortest call with data, `bough.prune(model, x, bough.Budget(macs="73.12%"), data=images)`, by 1,024 unlabelled
training images. Training is distillation from the pretrained model on the training images; the accuracy is that of the
last weights on all 10,000 test images. A killed run goes on where it was; rows in the JSON are not made again.

The published row is of NVIDIA ModelOpt's notebook for FastNAS (ResNet-20 on CIFAR-10, 81.1 to 59.3 MFLOPs). Its pretrained
weights are others than these.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bough
from benchmarks.cifar import Augmented, batches, images, load_module, predicted, test_images
from benchmarks.harness import about
from benchmarks.supernet import Timed
from bough.recovery import Distillation

RESULTS = Path(__file__).parent / "results" / "fastnas.json"
PUBLISHED = {"method": "ModelOpt FastNAS", "macs": [81.1e6 / 2, 59.3e6 / 2], "dense": 90.97, "cut": 60.37, "120 epochs": 90.28}
SHARE = 59.3 / 81.1
CALIBRATION, TEST, BATCH = 1024, 10_000, 64
LABELS = 0.1  # weight of the labels beside the pretrained model's outputs


def pruned(load: Any, unlabelled: list[torch.Tensor], folder: Path) -> tuple[nn.Module, dict[str, float]]:
    """Return the cut model with its costs and the CPU seconds that it took; it is kept in a folder for resumed runs."""
    about_cut = folder / "about.json"
    if not about_cut.exists():
        begin = time.process_time()
        cut = bough.prune(pretrained(load), unlabelled[0][:1], bough.Budget(macs=f"{100 * SHARE}%"), data=unlabelled)
        seconds, macs = round(time.process_time() - begin, 1), cut.plan.cost.macs
        bough.save(cut, folder, overwrite=True)
        about_cut.write_text(json.dumps({"macs": macs, "macs_kept": macs / cut.plan.original.macs, "cpu_seconds": seconds}))
    small = bough.load(folder, lambda: pretrained(load))
    return small.to(memory_format=torch.channels_last), json.loads(about_cut.read_text())


def pretrained(load: Any) -> nn.Module:
    """Return the pretrained ResNet-20."""
    model: nn.Module = load.resnet_cifar10(20)
    return model.eval().to(memory_format=torch.channels_last)


def trained(small: nn.Module, model: nn.Module, load: Any, given: argparse.Namespace) -> float:
    """Train `small` in place; return the CPU seconds of all processes that have worked on it."""
    folder = given.runs / f"{given.epochs}-epochs-{given.images}"
    folder.mkdir(parents=True, exist_ok=True)
    timed = Timed(folder)
    training = bough.Training(epochs=given.epochs, lr=1e-3, precision="bf16", folder=folder, save_every=50, log_every=50)
    bough.distill(
        small, model, batches(Augmented(load, given.images), BATCH), training, distillation=Distillation(logits=1 - LABELS),
        callback=timed,
    )  # fmt: skip
    return round(timed.seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data and weights, with its load.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run, by which a killed one is resumed")
    parser.add_argument("--epochs", type=int, default=10, help="of training; 0 for the cut alone")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = load_module(given.data)
    model = pretrained(load)
    found, _ = load.cifar10("train")
    unlabelled = [x.contiguous() for x in images(found[:CALIBRATION], load).split(128)]
    x, y = test_images(load, TEST)

    def accuracy(net: nn.Module) -> float:
        return round(100 * float((predicted(net, x) == y).float().mean()), 2)

    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []

    def add(method: str, net: nn.Module, **more: Any) -> None:
        if not any(r["method"] == method for r in rows):
            rows.append({"method": method, "accuracy": accuracy(net), **more})
            print(rows[-1], flush=True)
            written = {"about": about(), "command": "python -m benchmarks.fastnas", "published": PUBLISHED, "rows": rows}
            RESULTS.write_text(json.dumps(written, indent=1) + "\n")

    add("pretrained", model)
    small, made = pruned(load, unlabelled, given.runs / "cut")
    add("cut, no training", small, **made)
    if given.epochs:
        seconds = trained(small, model, load, given)
        settings = {"epochs": given.epochs, "images": given.images, "batch": BATCH, "lr": 1e-3, "seed": 0}
        add(f"{given.epochs} epochs of {given.images}", small, **{**made, "cpu_seconds": seconds}, **settings)


if __name__ == "__main__":
    main()
