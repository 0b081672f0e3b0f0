"""Accuracy after a cut and training, beside Torch-Pruning with the same training.

    python -m benchmarks.finetuning --data PATH --depth 56 --starts refit torch-pruning --recipes distill --times 2.57

A row per (network, start, recipe, cut, epochs, learning rate, seed): how the network became smaller (benchmarks/starts.py), and
how it was trained on. Every row has the same order of the data, augmentation, optimizer, and number of epochs, those of
iterated and regularized starts counted in; each piece of training has a schedule of its own. The test images choose nothing:
what counts is the accuracy of the last weights. A killed run goes on where it was; rows in the JSON are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import bough
from benchmarks.cifar import Augmented, batches, images, load_module, predicted, test_images
from benchmarks.harness import about
from benchmarks.starts import DISTILLATION, STARTS, Setting
from benchmarks.views import with_answers
from bough import recovery

RESULTS = Path(__file__).parent / "results" / "finetuning.json"
DECAY = 5e-4
UNLABELLED = replace(DISTILLATION, logits=1.0)


def plain(small: nn.Module, model: nn.Module, data: Any, training: recovery.Training, **more: Any) -> None:
    recovery.finetune(small, data, training, **more)


def distilled(small: nn.Module, model: nn.Module, data: Any, training: recovery.Training, **more: Any) -> None:
    recovery.distill(small, model, data, training, distillation=DISTILLATION, **more)


def pasted(small: nn.Module, model: nn.Module, data: Any, training: recovery.Training, **more: Any) -> None:
    """The teacher's answers alone, no labels, and half of the batches of images that are pasted together."""
    dataset = Augmented(data.dataset.load, pasted=0.5)
    recovery.distill(small, model, batches(dataset), training, distillation=UNLABELLED, **more)


class Mirrored(nn.Module):
    """The mean of a network's answers to images and to their mirror images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        there, back = self.model(torch.cat([x, x.flip(-1)])).chunk(2)
        return (there + back) / 2


def mirrored(small: nn.Module, model: nn.Module, data: Any, training: recovery.Training, **more: Any) -> None:
    """Distillation from a teacher that sees each image and its mirror image."""
    distilled(small, Mirrored(model), data, training, **more)


def ensemble(
    small: nn.Module, model: nn.Module, data: Any, training: recovery.Training, pasted: bool = False, **more: Any
) -> None:
    """Distillation from the mean of four networks, ResNet-20 to ResNet-56, whose answers are computed beforehand."""
    assert training.folder is not None
    answered = with_answers(data.dataset, Path(training.folder).parents[1] / "views", pasted)
    teacher = nn.Identity()  # its answers come with the batch
    recovery.distill(
        small, teacher, batches(answered), training, distillation=UNLABELLED if pasted else DISTILLATION,
        forward=lambda net, batch: net(batch[2] if net is teacher else batch[0]),
        loss=lambda logits, batch: nn.functional.cross_entropy(logits, batch[1]), **more,
    )  # fmt: skip


def ensemble_pasted(*given: Any, **more: Any) -> None:
    """The same without labels, and two thirds of the views of images with a square of another in them."""
    ensemble(*given, pasted=True, **more)


RECIPES: dict[str, Callable[..., None]] = {
    "plain": plain, "distill": distilled, "pasted": pasted, "mirrored": mirrored, "ensemble": ensemble,
    "ensemble-pasted": ensemble_pasted,
}  # fmt: skip


def row(load: ModuleType, depth: int, start: str, recipe: str, times: float, training: recovery.Training) -> dict[str, Any]:
    folder, epochs = Path(str(training.folder)), training.epochs
    x, y = test_images(load, 10_000)

    def accuracy(model: nn.Module, every: int = 1) -> float:
        return 100 * float((predicted(model, x[::every]) == y[::every]).float().mean())

    model = load.resnet_cifar10(depth).to(memory_format=torch.channels_last)
    found, _ = load.cifar10("train")
    torch.manual_seed(training.seed)
    data = batches(Augmented(load))
    begin = time.perf_counter()
    unlabelled = list(images(found[:1024], load).split(128))
    cut = STARTS[start](Setting(copy.deepcopy(model), unlabelled, 1 / times, data, training))
    small = cut.model.to(memory_format=torch.channels_last)
    out: dict[str, Any] = {"macs_kept": cut.kept, "start_s": time.perf_counter() - begin, "before": accuracy(small)}
    out["params_kept"] = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    curve = folder / "curve.jsonl"

    def at_the_end_of_epochs(line: dict[str, Any]) -> None:
        if line["step"] % len(data) == 0:
            with curve.open("a") as file:
                file.write(
                    json.dumps({"epoch": cut.epochs + line["epoch"] + 1, "accuracy_of_2000": accuracy(small, every=5)}) + "\n"
                )

    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    left = replace(training, epochs=epochs - cut.epochs, folder=folder / "last")
    RECIPES[recipe](small, model, data, left, callback=at_the_end_of_epochs)
    out |= {"train_s": time.perf_counter() - begin, "after": accuracy(small)}
    if cut.plan is not None:
        bough.save(small, cut.plan, folder / "checkpoint", overwrite=True)
    return out | {"curve": [json.loads(line) for line in curve.read_text().splitlines()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--depth", type=int, default=56, choices=(20, 32, 44, 56))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--times", nargs="+", type=float, default=[2.57], help="how many times fewer MACs")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.02, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=DECAY)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=Path(".finetuning"), help="folder of the runs' states and logs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = load_module(given.data)
    each = [(s, r, t, seed) for s in given.starts for r in given.recipes for t in given.times for seed in given.seeds]
    for start, recipe, times, seed in each:
        decay = "" if given.weight_decay == DECAY else f" decay {given.weight_decay:g}"
        key = f"resnet{given.depth} {start} {recipe} {times:g}x {given.epochs} epochs lr {given.lr:g}{decay} seed {seed}"
        if key in read(given.out):
            continue
        training = recovery.Training(
            epochs=given.epochs, lr=given.lr, optimizer="sgd", weight_decay=given.weight_decay, precision="bf16", clip=None,
            seed=seed,
            folder=given.runs / key.replace(" ", "-"), save_every=200, log_every=50,
        )  # fmt: skip
        made = row(load, given.depth, start, recipe, times, training)
        given.out.write_text(json.dumps(read(given.out) | {key: made | {"about": about()}}, indent=1) + "\n")
        print(key, {k: v for k, v in made.items() if k != "curve"}, flush=True)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
