"""Accuracy right after a cut, with no training at all: every criterion and allocation, beside Torch-Pruning's.

    python -m benchmarks.criteria --data PATH --models resnet56 mobilenetv1_025 stories260k

bough's rows are made by `bough.compare`, in one cut. All rows are kept in a folder (--runs): what is there is not made again.
Torch-Pruning is asked for the same shares of the MACs, and comes there in one cut too, scored on the same data, and in 150,
scored again for each, on a batch after the other of twice the data. Of the rows of a budget the best of each is chosen on data
that is not the test's and then measured on all test data. Nothing is refitted or recalibrated: see benchmarks/recovery.py for
that.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import bough
from benchmarks import peers
from benchmarks.cifar import load_module
from benchmarks.harness import about
from benchmarks.tasks import TASKS, Task
from bough.comparing import Row, compare
from bough.comparing.naming import named

RESULTS = Path(__file__).parent / "results" / "criteria.json"
BUDGETS = {"resnet56": (75, 60, 50, 40), "mobilenetv1_025": (80, 65, 50), "stories260k": (90, 80, 70)}
ALLOCATIONS = ("uniform", "global", "greedy")  # and "error" for scores that are errors
SLOW = ("shapley", "masked_loss", "hrank")  # --slow: their cost is units x data, or an SVD of every map; scored on one batch
STEPS = 150  # of Torch-Pruning
ALL = 10_000
COUNTS = ("images", "stories", "clips")


def criteria(task: Task, slow: bool) -> dict[str, Any]:
    """All that score units, by name, and those by reconstruction with options that set groups side by side."""
    table = bough.importance.CRITERIA
    names = [n for n, e in table.items() if e.scores == "units" and (slow or n not in SLOW)]
    relative = [c(sites=64, relative=True, probes=n) for c in (bough.importance.OBS, bough.importance.ThiNet) for n in (0, 1)]
    return {n: bough.importance.criterion(n, task.loss) for n in names} | {named(c): c for c in relative}


def budget(task: Task, percent: int) -> bough.Budget:
    return bough.Budget(**{task.field: f"{percent}%"})


def scored_on(task: Task, criterion: str = "") -> list[Any]:
    return task.calibration[: 1 if criterion in SLOW else len(task.calibration) // 2]


def ours(task: Task, percents: Sequence[int], slow: bool, folder: Path) -> list[Row]:
    def evaluate(model: nn.Module) -> dict[str, float]:
        print(".", end="", flush=True)
        return {**task.measure(model), "choose": task.choose(model)}

    def compared(names: Sequence[str], allocations: Sequence[str]) -> Iterator[Row]:
        found = compare(
            task.model, example(task), [n if n in bough.importance.CRITERIA else made[n] for n in names],
            [budget(task, p) for p in percents], evaluate, allocations=allocations, data=scored_on(task, names[0]),
            loss=task.loss, ignore=task.ignore, folder=folder, lower_is_better=task.lower_is_better,
        )  # fmt: skip
        return (r for r in found.rows[1:] if r.criterion in names)

    made = criteria(task, slow)
    errors = [n for n, c in made.items() if getattr(c, "gives_errors", False)]
    fast, late = [n for n in made if n not in SLOW], [n for n in made if n in SLOW]
    return [*compared(fast, ALLOCATIONS), *compared(errors, ["error"]), *(compared(late, ALLOCATIONS) if late else ())]


def by_layers(task: Task, percents: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Whole layers left out, those of the least influence first: as many as the budget asks for."""
    graph = bough.trace(task.model, example(task), ignore=task.ignore)
    scores = bough.score(graph, bough.importance.BlockInfluence(), scored_on(task))
    influences: dict[str, float] = {}
    for name in dict.fromkeys(x.container or x.name for x in graph.layers):
        entries = [x.name for x in graph.layers if (x.container or x.name) == name]
        influences |= dict(zip(entries, scores[name].tolist(), strict=True))
    whole, gone = getattr(graph.cost(), task.field), []
    order = sorted(influences, key=influences.__getitem__)
    for percent in percents:
        row = {"criterion": "block_influence", "allocation": "layers", "budget": f"{task.field}={percent}%"}
        plan = bough.plan(graph, scores, keep={}, drop=gone)
        while getattr(plan.cost, task.field) > percent / 100 * whole and order:
            gone.append(order.pop(0))
            plan = bough.plan(graph, scores, keep={}, drop=gone)
        if getattr(plan.cost, task.field) > percent / 100 * whole:
            yield row | {"error": "out of reach by leaving layers out"}
            continue
        small = bough.cut(task.model, plan)
        measured = figures(task.measure(small))
        kept = round(getattr(plan.cost, task.field) / whole, 4)
        yield {**row, "kept": kept, **measured, "choose": task.choose(small), "left_out": list(gone)}


def figures(measured: Mapping[str, float]) -> dict[str, float]:
    """As they are told, without how many samples there were."""
    return {k: round(v, 3) for k, v in measured.items() if k not in COUNTS}


def example(task: Task) -> Any:
    batch = task.calibration[0]
    return (batch[0] if isinstance(batch, (tuple, list)) else batch)[:2]


def theirs(task: Task, percents: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Torch-Pruning's rows, each with the file in `folder` that holds its model."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for steps, criterion, allocation in product((1, STEPS), peers.CRITERIA, ("global", "uniform")):
        made = folder / f"{criterion}-{allocation}-{steps}.json"
        if not made.exists():
            start = time.perf_counter()
            row = {"criterion": criterion, "allocation": allocation, "steps": steps}
            made.write_text(json.dumps(list(asked(task, row, percents, made))))
            print("torch-pruning", row, round(time.perf_counter() - start), "s", flush=True)
        rows += json.loads(made.read_text())
    return rows


def asked(task: Task, row: dict[str, Any], percents: Sequence[int], file: Path) -> Iterator[dict[str, Any]]:
    """One way of Torch-Pruning's to all budgets; its models go beside `file`."""
    pruned = peers.torch_pruning_at_once if row["steps"] == 1 else partial(peers.torch_pruning, steps=row["steps"])
    labelled = scored_on(task) if row["steps"] == 1 else task.calibration
    torch.manual_seed(0)
    try:
        cut = pruned(
            task.model, example(task), row["criterion"], [p / 100 for p in percents], uniform=row["allocation"] == "uniform",
            labelled=labelled,
        )  # fmt: skip
        for percent, (model, kept) in zip(percents, cut, strict=False):
            measured = figures(task.measure(model))
            at = file.with_suffix(f".{percent}.pt")
            torch.save(model, at)
            budget = f"{task.field}={percent}%"
            yield {**row, "budget": budget, "kept": round(kept, 4), **measured, "choose": task.choose(model), "model": str(at)}
    except Exception as error:
        yield {**row, "error": f"{type(error).__name__}: {error}"[:200]}


def short(row: Row, task: Task) -> dict[str, Any]:
    """What of a row goes into the results."""
    kind = {"criterion": row.criterion, "allocation": row.allocation, "budget": row.budget}
    if row.error:
        return kind | {"error": row.error[:200]}
    seeds = {} if row.seed is None else {"seed": row.seed}
    measured = figures(row.metrics)
    return kind | seeds | {"kept": round(row.kept[task.field], 4), **measured, "score_s": round(row.seconds.get("score", 0), 2)}


def run(load: ModuleType, name: str, test: int, slow: bool, folder: Path) -> dict[str, Any]:
    task, percents, peer = (
        TASKS[name](load, test),
        BUDGETS.get(name, (75, 50)),
        name != "stories260k",
    )  # it does not finish on GQA
    mine = [short(r, task) for r in ours(task, percents, slow, folder / name)]
    layers = list(by_layers(task, percents)) if bough.trace(task.model, example(task)).layers else []
    made = theirs(task, percents, folder / f"{name}-torch-pruning-{test}") if peer else []
    whole, sign = TASKS[name](load, ALL), -1 if task.lower_is_better else 1
    bests = []
    for percent in percents:
        of_budget = f"{task.field}={percent}%"
        chosen = max((r for r in mine if r["budget"] == of_budget and "error" not in r), key=lambda r: sign * r["choose"])
        pair: dict[str, Any] = {"budget": of_budget, "bough": chosen | whole.measure(recut(task, chosen, percent))}
        for steps, tool in ((1, "torch_pruning"), (STEPS, f"torch_pruning in {STEPS} steps")):
            candidates = [r for r in made if "error" not in r and r["budget"] == of_budget and r["steps"] == steps]
            if candidates:
                row = max(candidates, key=lambda r: sign * r["choose"])
                pair[tool] = plain_row(row) | whole.measure(torch.load(row["model"], weights_only=False))
        bests.append(pair)
        print(pair, flush=True)
    dense = whole.measure(copy.deepcopy(task.model))
    return {
        "dense": dense,
        "best": bests,
        "bough": [*mine, *layers],
        "torch_pruning": list(map(plain_row, made)),
        "about": about(),
    }


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Without the file of the model, which is of the machine."""
    return {k: v for k, v in row.items() if k != "model"}


def recut(task: Task, row: dict[str, Any], percent: int) -> nn.Module:
    """The model of one of bough's rows, made again."""
    graph = bough.trace(task.model, example(task))
    scores = bough.score(graph, criteria(task, True)[row["criterion"]], scored_on(task, row["criterion"]))
    return bough.cut(
        task.model, bough.plan(graph, scores, budget(task, percent), allocation=row["allocation"], ignore=task.ignore)
    )  # fmt: skip


def write(results: dict[str, Any], path: Path) -> None:
    """As JSON with a row to a line."""
    text = json.dumps(results, indent=1)
    path.write_text(re.sub(r"\{[^{}]*\}", lambda m: " ".join(m[0].split()), text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--test", type=int, default=1000, help="test samples of each row")
    parser.add_argument("--slow", action="store_true", help=f"also {', '.join(SLOW)}")
    parser.add_argument("--runs", type=Path, default=Path(".criteria"), help="folder of the rows made so far")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = load_module(given.data)
    for name in given.models:
        made = run(load, name, given.test, given.slow, given.runs)
        results = json.loads(given.out.read_text()) if given.out.exists() else {}
        write(results | {name: made}, given.out)


if __name__ == "__main__":
    main()
