"""Search under two limits, latency and peak memory, beside uniform scaling, the one-shot plans and random search.

    python -m benchmarks.search --data PATH --tasks dscnn --budgets 75,90 50,70 35,55 --trials 24

Each budget is a share of the latency (batch 1, one thread of onnxruntime, by a table that is corrected by whole models) and
of the peak memory. All rows cut by the same scores (errors of OBS on the calibration data) and are refitted on the same data,
without training. Candidates are selected by a part of the validation data; the test data is measured once for each row. Random
search evaluates as many candidates as the others, and has no start points. Times of whole models are CPU times of the thread,
which other processes disturb less than the clock; `--check` measures each result again, in processes of their own. What the
JSON has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bough
from benchmarks import harness
from benchmarks.cifar import load_module
from benchmarks.recovery import first
from benchmarks.tasks import TASKS, Task
from bough.defaults import WITH_DATA
from bough.measuring import runner
from bough.measuring.runners import eval_mode
from bough.planning import Options
from bough.searching import search_space

RESULTS = Path(__file__).parent / "results" / "search.json"
CACHE = Path(".latency")
ONE_SHOT = ("uniform", "global", "greedy", "error")
SEARCHES = ("random", "nsga2", "tpe", "local")
SCORES = WITH_DATA[0].importance
REPEATS, PROCESSES = 300, 3
ROUND_TO = 16  # onnxruntime blocks channels by vector registers: other widths take longer than the whole model
BACKEND = "onnxruntime"  # which fuses batch norms and activations: eager, overhead is most of the time of such small models


def cpu_seconds(models: dict[str, nn.Module], x: torch.Tensor, repeats: int = REPEATS) -> dict[str, float]:
    """Return the median seconds of CPU time of a forward pass of each model, timed turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with eval_mode(*models.values()):
        runs = {name: runner(model, x, BACKEND) for name, model in models.items()}
        for turn in range(repeats + 5):
            for name, run_once in runs.items():
                begin = time.thread_time()
                run_once()
                if turn >= 5:
                    times[name].append(time.thread_time() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def table_of(name: str, model: nn.Module, x: torch.Tensor, round_to: int) -> bough.LatencyTable:
    """Return the latency table of a model on this machine, made once; its whole-model factors are of CPU time."""
    path = CACHE / f"search-{name}-{round_to}.json"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        graph = bough.trace(model, x)
        measured = bough.LatencyTable.measure(graph, BACKEND, quantum=round_to, seconds=20.0, path=path.with_suffix(".part"))
        whole = cpu_seconds({"whole": model}, x)["whole"]

        def here(small: nn.Module) -> float:
            both = cpu_seconds({"whole": model, "small": small}, x)
            return whole * both["small"] / both["whole"]

        bough.correct_table(graph, measured, here).save(path)
    return bough.LatencyTable.load(path)


def priced_per_second(space: Any) -> float:
    """Return how many random candidates a second are priced and checked against the limits."""
    rng = np.random.default_rng(0)
    choices = np.stack([space.draw(rng) for _ in range(2000)])
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        space.feasible(choices)
        rates.append(len(choices) / (time.perf_counter() - begin))
    return round(statistics.median(rates))


class Bench:
    """One task at one budget."""

    def __init__(self, name: str, task: Task, budget: bough.Budget, given: argparse.Namespace) -> None:
        self.name, self.task, self.budget, self.given = name, task, budget, given
        self.x = task.calibration[0][0][:1]
        self.table = table_of(name.rstrip("012"), task.model, self.x, given.round_to) if budget.latency else None
        self.planning = {"round_to": given.round_to, **({"table": self.table} if self.table else {})}
        self.options = {
            "data": task.calibration, "ignore": task.ignore, "importance": SCORES, **self.planning
        }  # fmt: skip

    def one_shot(self, allocation: str) -> dict[str, Any]:
        graph = bough.trace(self.task.model, self.x, ignore=self.task.ignore)
        scores = bough.score(graph, SCORES, self.task.calibration)
        plan = bough.plan(graph, scores, self.budget, allocation=allocation, **self.planning)
        small = bough.cut(self.task.model, plan)
        bough.recovery.refit_(self.task.model, small, plan, self.task.calibration)
        return self.row(small, plan)

    def seconds(self, model: nn.Module) -> float:
        """Return the seconds of a model as the table has them for the whole model, times what is measured beside that."""
        both = cpu_seconds({"whole": self.task.model, "small": model}, self.x, 100)
        assert self.table is not None
        whole = float(self.table.seconds(bough.trace(self.task.model, self.x))[0])
        return whole * both["small"] / both["whole"]

    def searched(self, method: str, seed: int, *, measured: bool = False) -> dict[str, Any]:
        begin = time.perf_counter()
        found = bough.search(
            self.task.model, self.x, self.metric, budget=self.budget, objectives=self.objectives, method=method, seed=seed,
            trials=self.given.trials, start=() if method == "random" else None, measure=self.seconds if measured else None,
            storage=self.folder(f"{method}-measured" if measured else method, seed), **self.options,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        at_work = sum(sum(p.seconds.values()) for p in found.points)
        chosen = found.selected[0]
        best, nominal = chosen.point, chosen.instead_of
        row = self.row(found.model(best), found.plan(best)) | {
            "validation_in_search": round(best.values[0], 3), "origin": best.origin, "near": chosen.near,
            "best_as_measured": self.row(found.model(nominal), found.plan(nominal)) if nominal is not best else None,
        }  # fmt: skip
        return row | {
            "evaluations": len(found.points), "failed": sum(p.error is not None for p in found.points), "s": round(seconds, 1),
            "share_of_time_evaluating": round(at_work / seconds, 3) if at_work < seconds else None,  # None: a resumed study
        }  # fmt: skip

    def row(self, small: nn.Module, plan: bough.Plan) -> dict[str, Any]:
        return {
            "validation": round(self.task.choose(small), 3), "test": round(self.task.measure(small)[self.task.metric], 3),
            "latency": round(plan.cost.latency / plan.original.latency, 4) if plan.original.latency else None,
            "peak_memory": round(plan.cost.peak_memory / plan.original.peak_memory, 4),
            "macs": round(plan.cost.macs / plan.original.macs, 4),
            "latency_in_fresh_processes": self.checked(small) if self.given.check else None,
            "widths": {n: k for n, (k, _) in plan.groups.items()},
        }  # fmt: skip

    def checked(self, small: nn.Module) -> list[float]:
        """Return the share of the latency that processes of their own measure."""
        path = self.folder("checked", 0).with_suffix(".pt")
        torch.save((self.task.model, small, self.x), path)
        found = [harness.measure("benchmarks.search", ["--worker", str(path)], 300) for _ in range(PROCESSES)]
        return [round(f["share"], 4) for f in found]

    def metric(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the metric by sample, on the share of the validation data that the search sees."""
        assert self.task.choose_samples is not None
        return {self.task.metric: self.task.choose_samples(model, self.given.validation)}

    @property
    def objectives(self) -> dict[str, str]:
        return {self.task.metric: "min" if self.task.lower_is_better else "max"}

    def folder(self, method: str, seed: int) -> Path:
        shares = f"{self.budget.latency or self.budget.macs}-{self.budget.peak_memory}".replace("%", "")
        folder = (
            CACHE / f"search-{self.name}-{self.given.limit}-{self.given.round_to}-{shares}-{method}-{seed}-{self.given.trials}"
        )
        folder.parent.mkdir(exist_ok=True)
        return folder


def run(load: Any, name: str, shares: str, given: argparse.Namespace) -> None:
    """Measure the rows of a task and a budget that the results lack, and write each at once."""
    task = TASKS[name](load, given.test)
    task = replace(task, calibration=first(task.calibration, given.samples))
    limit, memory = shares.split(",")
    bench = Bench(name, task, bough.Budget(**{given.limit: f"{limit}%"}, peak_memory=f"{memory}%"), given)
    shares = shares if given.limit == "latency" else f"{given.limit} {shares}"
    rows: dict[str, Callable[[], dict[str, Any]]] = {f"one shot, {a}": lambda a=a: bench.one_shot(a) for a in ONE_SHOT}
    for seed in range(given.seeds):
        rows |= {f"{m}, seed {seed}": lambda m=m, seed=seed: bench.searched(m, seed) for m in given.methods}
        if given.check and bench.table:
            rows[f"local, measured, seed {seed}"] = lambda seed=seed: bench.searched("local", seed, measured=True)
    rows = {key: make for key, make in rows.items() if not given.rows or any(key.startswith(r) for r in given.rows)}
    for key, make in rows.items():
        if key in _known(given.out, name, shares)[1]:
            continue
        row = make()
        results, found = _known(given.out, name, shares)  # another process may have written meanwhile
        found[key] = row
        if "priced_per_second" not in results[name] and bench.table:
            graph = bough.trace(task.model, bench.x)
            space, _ = search_space(
                graph, bough.score(graph, "l2"), Options(table=bench.table, round_to=given.round_to), budget=bench.budget,
                prices=bough.planning.budget.priced(bench.budget, bench.table, None),
            )  # fmt: skip
            results[name]["priced_per_second"] = priced_per_second(space)
        about = {
            "metric": task.metric,
            "trials": given.trials,
            "samples": given.samples,
            "validation": round(given.validation, 3),
            "test": given.test,
            "round_to": given.round_to,
        }
        results[name] |= about | {"dense": task.measure(task.model)[task.metric], "about": harness.about()}
        given.out.write_text(re.sub(r"\{[^{}]*\}", lambda m: " ".join(m[0].split()), json.dumps(results, indent=1)) + "\n")
        print(name, shares, key, {k: v for k, v in found[key].items() if k != "widths"}, flush=True)


def _known(path: Path, name: str, shares: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (all results that there are, the rows of a task and a budget in them)."""
    results = json.loads(path.read_text()) if path.exists() else {}
    return results, results.setdefault(name, {}).setdefault("budgets", {}).setdefault(shares, {})


def worker(path: Path) -> None:
    """Print the share of the latency that a cut model has, measured in this process beside the whole model."""
    torch.set_num_threads(1)
    whole, small, x = torch.load(path, weights_only=False)
    times = cpu_seconds({"whole": whole, "small": small}, x)
    print(json.dumps({"share": times["small"] / times["whole"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds load.py")
    parser.add_argument("--tasks", nargs="+", default=["dscnn"], choices=list(TASKS))
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=["75,90", "50,70", "35,55"],
        help="LATENCY,PEAK_MEMORY in percent, or MACS,PEAK_MEMORY by --limit macs",
    )
    parser.add_argument("--rows", nargs="+", help="beginnings of the rows to make; all unless given")
    parser.add_argument("--limit", choices=["latency", "macs"], default="latency", help="what the first of --budgets limits")
    parser.add_argument("--round-to", type=int, default=ROUND_TO)
    parser.add_argument("--methods", nargs="+", default=list(SEARCHES), choices=SEARCHES)
    parser.add_argument("--trials", type=int, default=24, help="candidates that each search evaluates")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each search runs")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--validation", type=float, default=1 / 3, help="share of the validation data that candidates see")
    parser.add_argument("--test", type=int, default=3000, help="test samples")
    parser.add_argument("--check", action="store_true", help="measure each result in processes of their own")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    if given.data is None:
        parser.error("--data is missing: the folder that holds load.py")
    torch.set_num_threads(1)
    load = load_module(given.data)
    for name in given.tasks:
        for shares in given.budgets:
            run(load, name, shares, given)


if __name__ == "__main__":
    main()
