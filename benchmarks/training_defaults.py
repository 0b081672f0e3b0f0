"""Which options `finetune` and `distill` should have by default: recipes beside each other after a cut of half of the MACs.

    python -m benchmarks.training_defaults --data PATH --tasks resnet20 vit speech_gru

Each task's dense model is cut once (OBS, allocation by error, refit) and then trained by each recipe, for as many epochs and
on the same samples in the same order. A recipe is named by the options in which it differs from BASE, the defaults of bough
0.1.0; "finetune" learns from labels alone. Recipes are chosen by half of the test images (on speech and stories: by validation
data) and told on the other half. Rows in the JSON are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bough
from benchmarks.cifar import Augmented, batches, load_module, test_images
from benchmarks.criteria import write
from benchmarks.harness import about
from benchmarks.tasks import TASKS
from benchmarks.tasks.pretrained import token_rows
from benchmarks.tasks.task import accuracy
from bough import recovery

RESULTS = Path(__file__).parent / "results" / "training_defaults.json"
BASE: dict[str, Any] = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "momentum": 0.9, "schedule": "cosine", "warmup": 0.05,
    "batch_size": 64, "clip": None, "temperature": 2.0, "logits": 0.5,
}  # fmt: skip
DISTILLATION = ("temperature", "logits")
RECIPES = (
    "", "finetune", "temperature=4", "clip=1 temperature=4", "batch_size=32 clip=1 temperature=4",
    "batch_size=32 clip=1 lr=0.0005 temperature=4",
    "clip=1 lr=0.002 temperature=4", "clip=1 lr=0.0005 temperature=4", "clip=1 logits=0.9 temperature=4",
    "clip=1 lr=0.01 optimizer=sgd temperature=4",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How long a task is trained, on how many of its samples (None: all), and in which precision."""

    epochs: int
    samples: int | None
    precision: str


SETTINGS = {
    "resnet20": Setting(2, 20_000, "bf16"),
    "vit": Setting(2, 20_000, "bf16"),
    "speech_gru": Setting(6, None, "no"),
    "stories260k": Setting(3, None, "no"),
}


@dataclass(frozen=True)
class Prepared:
    """A task's dense model and its cut one, its training data, and the metric on two sets that are not trained on.

    `forward`: as `bough.distill` takes it; None for its default.
    """

    model: nn.Module
    small: nn.Module
    data: Callable[[int], DataLoader[Any]]
    choose: Callable[[nn.Module], float]
    test: Callable[[nn.Module], float]
    forward: Callable[[nn.Module, Any], Any] | None = None


def prepared(load: ModuleType, name: str, samples: int | None) -> Prepared:
    task = TASKS[name](load, 100 if name == "stories260k" else 10_000)
    task.model.to(memory_format=torch.channels_last if name == "resnet20" else torch.contiguous_format)
    inputs = [batch if isinstance(batch, torch.Tensor) else batch[0] for batch in task.calibration]
    graph = bough.trace(task.model, inputs[0][:2])
    scores = bough.score(graph, bough.importance.OBS(sites=64, relative=True), inputs[: len(inputs) // 2])
    plan = bough.plan(graph, scores, bough.Budget(**{task.field: "50%"}), allocation="error", ignore=task.ignore)
    small = recovery.refit(task.model, bough.cut(task.model, plan), plan, inputs).model.eval()
    metric = lambda model: task.measure(model)[task.metric]  # noqa: E731
    if name == "stories260k":
        rows = token_rows(load, load.Tok512(), 1000)
        text = TensorDataset(torch.cat([rows[:256], rows[288:]]))  # those between are the task's validation
        return Prepared(
            task.model, small, lambda size: DataLoader(text, size, shuffle=True), task.choose, metric,
            lambda model, batch: model(input_ids=batch[0], labels=batch[0]),
        )  # fmt: skip
    assert task.train_set is not None
    if name == "speech_gru":
        learned = task.train_set()
        return Prepared(task.model, small, lambda size: batches(learned, size), task.choose, metric)
    x, y = test_images(load, 10_000)
    return Prepared(
        task.model, small, lambda size: batches(Augmented(load, samples), size),
        lambda model: accuracy(model, x[:5000], y[:5000]), lambda model: accuracy(model, x[5000:], y[5000:]),
    )  # fmt: skip


def options_of(recipe: str) -> dict[str, Any]:
    """The options that a recipe's name tells, as in "lr=0.03 optimizer=sgd"."""
    cells = (part.split("=") for part in recipe.split() if "=" in part)
    return {name: value if isinstance(BASE[name], str) else float(value) for name, value in cells}


def row(task: Prepared, recipe: str, setting: Setting, seed: int) -> dict[str, Any]:
    options = BASE | options_of(recipe)
    distillation = recovery.Distillation(**{k: options.pop(k) for k in DISTILLATION})
    data = task.data(int(options.pop("batch_size")))
    training = recovery.Training(epochs=setting.epochs, precision=setting.precision, seed=seed, **options)
    small, begin = copy.deepcopy(task.small), time.process_time()
    if recipe.startswith("finetune"):
        done = recovery.finetune(small, data, training, forward=task.forward)
    else:
        done = recovery.distill(small, task.model, data, training, distillation=distillation, forward=task.forward)
    seconds = time.process_time() - begin
    return {"choose": task.choose(small), "test": task.test(small), "loss": done.epochs[-1]["loss"], "cpu_s": round(seconds, 1)}


def table(results: dict[str, Any]) -> str:
    """Return the test metrics in Markdown, a line per recipe.

    Recipes that all tasks were trained by come first, by their mean rank among each other by `choose`.
    """
    tasks = [s["task"] for s in results["starts"]]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for r in results["rows"]:
        rows.setdefault(r["recipe"], {})[r["task"]] = r
    whole = {recipe: found for recipe, found in rows.items() if len(found) == len(tasks)}
    ranks = {recipe: 0.0 if recipe in whole else math.inf for recipe in rows}
    for name in tasks:
        sign = -1 if name == "stories260k" else 1
        for rank, recipe in enumerate(sorted(whole, key=lambda r: -sign * whole[r][name]["choose"]), 1):
            ranks[recipe] += rank / len(tasks)
    lines = [f"| | {' | '.join(tasks)} | mean rank |", "|---" * (len(tasks) + 2) + "|"]
    for title in ("dense", "cut"):
        lines.append(f"| {title} | {' | '.join(f'{s[title]:.2f}' for s in results['starts'])} | |")
    for recipe in sorted(rows, key=ranks.__getitem__):
        cells = " | ".join(f"{rows[recipe][name]['test']:.2f}" if name in rows[recipe] else "" for name in tasks)
        rank = f"{ranks[recipe]:.1f}" if recipe in whole else ""
        lines.append(f"| {recipe or 'as it was'} | {cells} | {rank} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument(
        "--recipes", nargs="+", default=list(RECIPES), help="options that differ from BASE, as 'lr=0.002 logits=1'"
    )
    parser.add_argument("--epochs", type=int, help="of each task its own by default")
    parser.add_argument("--samples", type=int, help="training images; of each task its own number by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = load_module(given.data)
    for name in given.tasks:
        own = SETTINGS[name]
        setting = Setting(given.epochs or own.epochs, given.samples or own.samples, own.precision)
        task: Prepared | None = None
        for seed, recipe in ((s, " ".join(sorted(r.split()))) for s in given.seeds for r in given.recipes):
            kind = {"task": name, "recipe": recipe, "epochs": setting.epochs, "samples": setting.samples, "seed": seed}
            if any(kind.items() <= r.items() for r in read(given.out)["rows"]):
                continue
            if task is None:
                torch.manual_seed(0)
                task = prepared(load, name, setting.samples)
                print(name, "dense", task.test(task.model), "cut and refitted", task.test(task.small), flush=True)
            try:
                made = row(task, recipe, setting, seed)
            except bough.BoughError as error:
                made = {"error": str(error)[:200]}
            results = read(given.out)
            start = {"task": name, "dense": task.test(task.model), "cut": task.test(task.small)}
            starts = results["starts"] + ([] if any(s["task"] == name for s in results["starts"]) else [start])
            write({"starts": starts, "rows": [*results["rows"], kind | made], "about": about()}, given.out)
            print(name, repr(recipe), made, flush=True)
    print(table(read(given.out)))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"starts": [], "rows": []}


if __name__ == "__main__":
    main()
