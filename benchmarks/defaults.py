"""What the shortest call gives, beside every criterion and allocation set by hand, and beside Torch-Pruning.

    python -m benchmarks.defaults --data PATH [--tasks vit unet] [--percent 50]

Each model is cut to a share of its MACs and not trained. Rows: `bough.prune` without options, with and without data; each
criterion with each allocation, as it is cut and, where it can be, refitted; Torch-Pruning's criteria, global and uniform, with
batch norms recalibrated. Calibration is the same for all. What the JSON has is not measured again; `--table` prints the table
of the README.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import bough
from benchmarks.cifar import load_module
from benchmarks.harness import about
from benchmarks.peers import torch_pruning_at_once
from benchmarks.recovery import first
from benchmarks.tasks import TASKS, Task
from bough.recovery import recalibrate

RESULTS = Path(__file__).parent / "results" / "defaults.json"
WEIGHTS = ("l1", "l2", "group", "lamp", "fpgm")
ON_DATA = ("taylor", "taylor_element", "wanda")
ERRORS = "obs(relative=True, probes=1, sites=64)"
ALLOCATIONS = ("uniform", "global", "isomorphic", "greedy")
REFITTED = ("l2", "group", "taylor_element", ERRORS)
PEERS = ("group", "taylor")
MACS = (
    "resnet20",
    "resnet56",
    "mobilenetv1_025",
    "vit",
    "plain_cnn",
    "speech_gru",
    "dscnn",
    "super_resolution",
    "unet",
    "stories260k",
)
Row = dict[str, Any]


def rows(task: Task, percent: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield each row's key and the function that measures it."""
    batch = task.calibration[0]
    x = (batch[0] if isinstance(batch, (tuple, list)) else batch)[:2]
    budget = bough.Budget(macs=f"{percent}%")
    graph = bough.trace(task.model, x)
    scores: dict[str, Any] = {}

    def default(data: Any) -> Row:
        result = bough.prune(task.model, x, budget, data=data, ignore=task.ignore)
        return measured(task, result.model) | {"choice": result.choice.to_dict() if result.choice else {}}

    def by_hand(criterion: str, allocation: str) -> Row:
        if criterion not in scores:
            scores[criterion] = bough.score(graph, bough.importance.criterion(criterion, task.loss), task.calibration)
        plan = bough.plan(graph, scores[criterion], budget, allocation=allocation, ignore=task.ignore)
        small = bough.cut(task.model, plan)
        row = {"kept": round(plan.cost.macs / plan.original.macs, 4), "cut": measured(task, small)[task.metric]}
        if criterion in REFITTED:
            row["refit"] = measured(task, bough.refit(task.model, small, plan, task.calibration).model)[task.metric]
        if allocation == "global" and criterion in WEIGHTS:
            row["merged"] = measured(task, bough.recovery.merge(graph, plan).model)[task.metric]
        return row

    yield "dense", lambda: measured(task, task.model)
    yield "default with data", lambda: default(task.calibration)
    yield "default without data", lambda: default(None)
    for criterion in (*WEIGHTS, *ON_DATA, ERRORS):
        for allocation in (*ALLOCATIONS, *(["error"] if criterion == ERRORS else [])):
            yield f"{criterion}, {allocation}", lambda c=criterion, a=allocation: by_hand(c, a)
    for criterion, uniform, whole in product(PEERS, (False, True), (False, True)):
        kind = ("uniform" if uniform else "global") + (", streams too" if whole else "")
        yield f"torch-pruning {criterion}, {kind}", partial(peer, task, x, criterion, percent, uniform, whole)


def measured(task: Task, model: nn.Module) -> Row:
    """Return the task's metric on its test data, rounded."""
    return {task.metric: round(task.measure(model)[task.metric], 3)}


def peer(task: Task, x: torch.Tensor, criterion: str, percent: int, uniform: bool, whole: bool) -> Row:
    """Return Torch-Pruning's row: in one cut, as it is and with batch norms recalibrated; `whole` cuts residual streams too."""
    labelled = task.calibration[:4] if criterion == "taylor" else ()
    small, kept = next(
        torch_pruning_at_once(task.model, x, criterion, [percent / 100], uniform=uniform, labelled=labelled, with_streams=whole)
    )
    row = {"kept": round(kept, 4), "cut": measured(task, small)[task.metric]}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in small.modules()):
        recalibrate(small, task.calibration)
        row["recalibrated"] = measured(task, small)[task.metric]
    return row


def run(load: ModuleType, name: str, given: argparse.Namespace) -> None:
    """Measure the rows of a task that the results lack, and write each at once."""
    task = TASKS[name](load, given.test)
    task = replace(task, calibration=first(task.calibration, given.samples))
    for key, make in rows(task, given.percent):
        results = json.loads(given.out.read_text()) if given.out.exists() else {}
        known = results.setdefault(name, {}).setdefault(f"{given.percent}%", {})
        if key in known or (given.rows and not re.search(given.rows, key)):
            continue
        torch.manual_seed(0)
        begin = time.perf_counter()
        try:
            row = make()
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
        known[key] = row | {"s": round(time.perf_counter() - begin, 1)}
        results[name]["metric"], results[name]["lower_is_better"] = task.metric, task.lower_is_better
        results[name]["samples"], results[name]["about"] = given.samples, about()
        given.out.write_text(re.sub(r"\{[^{}]*\}", lambda m: " ".join(m[0].split()), json.dumps(results, indent=1)) + "\n")
        print(name, key, row, flush=True)


def table(results: dict[str, Any], percent: int) -> str:
    """Return the table of the README: the defaults, the best by hand, plain L2 with refit, and the best of Torch-Pruning."""
    head = [
        "half of the MACs",
        "dense",
        "default, with data",
        "best by hand",
        "L2, refit",
        "default, no data",
        "Torch-Pruning, best",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, found in results.items():
        made, sign = found.get(f"{percent}%", {}), -1 if found.get("lower_is_better") else 1
        metric = found["metric"]

        def best(prefix: str, keys: tuple[str, ...], made: Row = made, sign: int = sign) -> str:
            values = [
                (sign * r[k], r[k], key) for key, r in made.items() for k in keys
                if k in r and key.startswith("torch-pruning") == (prefix == "peer") and key != "dense" and "default" not in key
            ]  # fmt: skip
            if not values:
                return "fails" if any(key.startswith("torch-pruning") for key in made) and prefix == "peer" else ""
            _, value, key = max(values)
            return f"{value:.4g} ({key.removeprefix('torch-pruning ').replace(ERRORS, 'obs')})"

        def of(key: str, field: str, made: Row = made) -> str:
            return f"{made[key][field]:.4g}" if field in made.get(key, {}) else ""

        cells = [
            f"{name}, {metric}", of("dense", metric), of("default with data", metric), best("ours", ("cut", "refit", "merged")),
            of("l2, global", "refit"), of("default without data", metric), best("peer", ("cut", "recalibrated")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds load.py")
    parser.add_argument("--tasks", nargs="+", default=list(MACS), choices=list(TASKS))
    parser.add_argument("--percent", type=int, default=50, help="of the MACs that remain")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--test", type=int, default=1000, help="test samples")
    parser.add_argument("--rows", help="a pattern: only rows whose key it is found in")
    parser.add_argument("--table", action="store_true", help="print the table of the results there are")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(given.out.read_text()), given.percent))
        return
    if given.data is None:
        parser.error("--data is missing: the folder that holds load.py")
    load = load_module(given.data)
    for name in given.tasks:
        run(load, name, given)


if __name__ == "__main__":
    main()
