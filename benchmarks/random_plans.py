"""Is a model ever left broken? Random plans over the zoo: each has to verify, or to be refused before anything is cut.

    python -m benchmarks.random_plans --plans 1000

A plan is random in its groups, in how many units of each stay and which, in whether units differ from head to head, and in
the layers left out. Each model is a fresh process. One JSON line a model goes to the out file; models there are skipped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

import bough
from benchmarks import harness, zoo
from benchmarks.coverage_bough import plain

OUT = harness.ROOT / "benchmarks" / "results" / "random_plans.jsonl"


def request(graph: bough.Graph, rng: random.Random) -> dict[str, Any]:
    """The options of a random plan."""
    groups = rng.sample(graph.groups, rng.randint(0, min(len(graph.groups), 12)))
    layers = rng.sample(graph.layers, rng.randint(0, min(len(graph.layers), 2)))
    keep = {g.name: rng.randint(1, g.size) for g in groups}
    return {"keep": keep, "drop": [x.name for x in layers], "ragged": rng.random() < 0.5}


def outcome(model: torch.nn.Module, graph: bough.Graph, inputs: Any, precise: bool, seed: int) -> tuple[str, Any]:
    """("equal" | "refused" | "broken", how far from equal or why)."""
    rng = random.Random(seed)
    units = np.random.default_rng(seed)
    scores = {g.name: units.random(g.size) for g in graph.groups}
    asked = request(graph, rng)
    try:
        plan = bough.plan(graph, scores, **asked)
    except bough.BoughError as error:
        return "refused", plain(str(error))
    try:
        report = bough.verify(
            model, bough.cut(model, plan), plan, inputs, **({} if precise else {"dtype": None})
        )  # fmt: skip
    except Exception as error:
        return "broken", {"why": plain(zoo.cause(error)), "asked": asked}
    return ("equal", report.max_error) if report.equal else ("broken", {"why": str(report), "asked": asked})


def work(suite: str, name: str, plans: int, seed: int) -> dict[str, Any]:
    model, inputs, precise = zoo.build(suite, name, seed)
    graph = bough.trace(model, inputs)
    found = [outcome(model, graph, inputs, precise, seed * 10_000 + i) for i in range(plans)]
    return {
        **Counter(kind for kind, _ in found),
        "float64": precise,
        "max_error": max((e for kind, e in found if kind == "equal"), default=0.0),
        "refusals": dict(Counter(why for kind, why in found if kind == "refused")),
        "breaks": [why for kind, why in found if kind == "broken"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="random plans over the zoo")
    parser.add_argument("--plans", type=int, default=1000, help="how many in all")
    parser.add_argument("--suites", nargs="+", default=list(zoo.TABLES), choices=zoo.TABLES)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=600, help="wall seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", nargs=3, metavar=("SUITE", "MODEL", "PLANS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(work(*args.worker[:2], plans=int(args.worker[2]), seed=args.seed)))
        return 0
    models = [(s, m) for s in args.suites for m in zoo.suite(s)]
    each = -(-args.plans // len(models))
    done = {(r["suite"], r["model"]) for r in map(json.loads, args.out.open())} if args.out.exists() else set()
    about = harness.about()

    def one(model: tuple[str, str]) -> dict[str, Any]:
        worker = ["--worker", *model, str(each), "--seed", str(args.seed)]
        result = harness.measure("benchmarks.random_plans", worker, args.timeout)
        return {"suite": model[0], "model": model[1], "plans": each, "seed": args.seed, **result, **about}

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as bar, ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
        left = [m for m in models if m not in done]
        row = bar.add_task("plans", total=len(left))
        for result in pool.map(one, left):
            out.write(json.dumps(result) + "\n")
            out.flush()
            bar.update(row, advance=1, description=f"{result['suite']}:{result['model']}")
    results = [json.loads(line) for line in args.out.open()]
    total = {kind: sum(r.get(kind, 0) for r in results) for kind in ("equal", "refused", "broken")}
    print(json.dumps({**total, "models": len(results), "not_done": [r["model"] for r in results if "breaks" not in r]}))
    return int(total["broken"] > 0)


if __name__ == "__main__":
    sys.exit(main())
