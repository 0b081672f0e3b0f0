"""What a cut costs without training, with and without refit: `python -m benchmarks.recovery --data PATH`.

PATH holds load.py and the data sets it reads. One row per (model, criterion, allocation, budget); rows already in the JSON
are not run again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bough
from benchmarks.cifar import load_module
from benchmarks.harness import about
from benchmarks.peers import torch_pruning_at_once
from benchmarks.tasks import TASKS, Task
from bough.calibration import batch_size
from bough.graph import Graph
from bough.recovery import recalibrate, refit

RESULTS = Path(__file__).parent / "results" / "recovery.json"


BUDGETS = {"resnet56": (65, 50), "mobilenetv1_025": (80, 65, 50), "stories260k": (80, 60)}
CRITERIA: dict[str, Callable[[], Any]] = {
    "group": bough.importance.GroupNorm,
    "obs": lambda: bough.importance.OBS(sites=64, relative=True),
    "obs_probes": lambda: bough.importance.OBS(sites=64, relative=True, probes=1),
}


def plan_of(graph: Graph, scores: Any, task: Task, allocation: str, percent: int) -> bough.Plan:
    budget = bough.Budget(**{task.field: f"{percent}%"})
    return bough.plan(graph, scores, budget, allocation=allocation, ignore=task.ignore)


def first(calibration: list[Any], samples: int) -> list[Any]:
    """As many samples, in batches as they are."""
    few: list[Any] = []
    for batch in calibration:
        if samples <= 0:
            break
        few.append(tuple(t[:samples] for t in batch) if isinstance(batch, tuple) else batch[:samples])
        samples -= batch_size(batch)
    return few


def row(task: Task, scores: Any, graph: Graph, allocation: str, percent: int, ridge: float | None) -> dict[str, Any]:
    plan = plan_of(graph, scores, task, allocation, percent)
    small = bough.cut(task.model, plan)
    kept = getattr(plan.cost, task.field) / getattr(plan.original, task.field)
    out: dict[str, Any] = {"kept": kept, "cut": task.measure(small)}
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in small.modules())
    if norms:
        again = copy.deepcopy(small)
        recalibrate(again, task.calibration)
        out["recalibrated"] = task.measure(again)
    start = time.perf_counter()
    result = refit(task.model, small, plan, task.calibration, ridge=ridge)
    out["refit_s"] = time.perf_counter() - start
    out["refit"] = task.measure(result.model)
    out["skipped"] = result.skipped
    if task.train is not None:
        start = time.perf_counter()
        task.train(result.model, task.model)
        out["train_s"] = time.perf_counter() - start
        out["distilled"] = task.measure(result.model)
        task.train(small, task.model)
        out["distilled_without_refit"] = task.measure(small)
    if norms:
        recalibrate(result.model, task.calibration)
        out["refit_recalibrated"] = task.measure(result.model)
    return out


def peer_row(task: Task, criterion: str, percent: int) -> dict[str, Any]:
    """Torch-Pruning's one-shot cut, with and without batch norms taken again."""
    share, labelled = [percent / 100], task.calibration[:4]
    small, kept = next(torch_pruning_at_once(task.model, task.calibration[0][0][:2], criterion, share, labelled=labelled))
    out = {"kept": kept, "cut": task.measure(small)}
    recalibrate(small, task.calibration)
    return out | {"recalibrated": task.measure(small)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--models", nargs="*", default=list(TASKS))
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--peers", nargs="*", default=[], help="criteria of Torch-Pruning to set beside")
    parser.add_argument("--allocations", nargs="*", default=["global", "uniform", "error"])
    parser.add_argument("--budgets", nargs="*", type=int, help="percent that remain; of each model its own without")
    parser.add_argument("--test", type=int, default=2000, help="test samples")
    parser.add_argument("--samples", type=int, help="calibration samples; as many as the model's task has without")
    parser.add_argument("--ridge", type=float, help="one for all layers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    load = load_module(given.data)
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"rows": {}}

    def keep(key: str, made: dict[str, Any]) -> None:
        results["rows"][key] = {**made, "about": about()}
        given.out.write_text(json.dumps(results, indent=1) + "\n")
        print(key, {k: v for k, v in made.items() if k != "skipped"}, flush=True)

    for name in given.models:
        task, note = TASKS[name](load, given.test), ""
        if given.samples is not None:
            task, note = dataclasses.replace(task, calibration=first(task.calibration, given.samples)), f" of {given.samples}"
        note += "" if given.ridge is None else f" ridge {given.ridge:g}"
        batch = task.calibration[0]
        graph = bough.trace(task.model, (batch if isinstance(batch, torch.Tensor) else batch[0])[:2])
        budgets = given.budgets or BUDGETS.get(name, (75, 50))
        for criterion in given.criteria:
            scores = None
            ways = [a for a in given.allocations if (a == "error") <= criterion.startswith("obs")]
            for allocation, percent in product(ways, budgets):
                key = f"{name} {criterion} {allocation} {percent}% {given.test}{note}"
                if key in results["rows"]:
                    continue
                if scores is None:
                    data = task.calibration[: max(len(task.calibration) // 2, 1)]
                    scores = bough.score(graph, CRITERIA[criterion](), data)
                keep(key, row(task, scores, graph, allocation, percent, given.ridge))
        for criterion, percent in product(given.peers, budgets):
            key = f"{name} torch-pruning {criterion} {percent}% {given.test}"
            if key not in results["rows"]:
                keep(key, peer_row(task, criterion, percent))
        dense = f"{name} dense {given.test}"
        if dense not in results["rows"]:
            keep(dense, {"dense": task.measure(task.model)})


if __name__ == "__main__":
    main()
