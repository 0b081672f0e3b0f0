"""How fast candidate plans are evaluated, and how far the allocators are from the optimum.

    python -m benchmarks.solvers --models resnet50 mobilenet_v2 --seconds 60

Each model is a fresh process. Evaluation: random plans, all five costs of each, by CPU time (and by the clock). Allocation:
the importance lost by Greedy and Knapsack over that lost by Milp, which is optimal on its menus (with a time limit, which
its note tells of), at random scores and widths in multiples of 8.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.budget_models import MODELS, build

LIMITS = ({"macs": 0.5}, {"params": 0.5}, {"macs": 0.25}, {"params": 0.5, "macs": 0.5}, {"peak_memory": 0.6})
PLANS = 20_000
LEAST_PER_SECOND, LARGEST_GAP = 20_000, 0.02  # what is claimed


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `run` gives, and the seconds of CPU and clock it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return result, {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def work(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """One model."""
    import numpy as np
    import torch

    import bough
    from bough.cost import closed_form
    from bough.planning.allocation import Allowed, columns
    from bough.planning.constraints.equations import ties

    torch.set_num_threads(1)
    graph = bough.trace(*build(name, seed))
    form = closed_form(graph)
    rng = np.random.default_rng(seed)
    plans = np.ceil(rng.random((PLANS, len(form.sizes))) * form.sizes)
    form.evaluate(plans[:100])
    _, took = timed(lambda: form.evaluate(plans))
    rates = {"plans_per_cpu_s": PLANS / took["cpu_s"], "plans_per_s": PLANS / took["wall_s"]}
    groups = {g.name: g for g in graph.groups}
    classes = [[groups[n] for n in names] for names in ties(graph, {}).classes]
    made = columns(classes, bough.score(graph, bough.importance.Random(seed)), Allowed(round_to=8))
    whole = form.cost().to_dict()
    gaps = [gap(form, made, {k: share * whole[k] for k, share in shares.items()}, shares, seconds) for shares in LIMITS]
    return {"model": name, "columns": len(made), "steps": sum(c.steps for c in made), **rates, "gaps": gaps}


def gap(form: Any, made: list[Any], limits: dict[str, float], shares: dict[str, float], seconds: float) -> dict[str, Any]:
    """The importance that each allocator loses, at one set of limits."""
    import numpy as np

    from bough.planning.allocation import Greedy, Knapsack, Milp
    from bough.planning.allocation.greedy import cumulated, total_loss

    lost = cumulated(made, True)
    row: dict[str, Any] = {"limits": shares}
    for name, allocator in (("greedy", Greedy()), ("knapsack", Knapsack()), ("milp", Milp(seconds=seconds))):
        if name == "knapsack" and "peak_memory" in limits:
            continue
        found, took = timed(lambda a=allocator: a(form, made, limits))
        steps = [int(np.flatnonzero(c.counts[:, 0] == found.counts[c.groups[0].name])[0]) for c in made]
        row[name] = {"met": found.met, "lost": total_loss(lost, np.array(steps)), **took, "note": found.note}
    best = row["milp"]["lost"]
    row["gap"] = {n: row[n]["lost"] / best - 1 for n in ("greedy", "knapsack") if n in row} if best else {}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each program that Milp solves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=3600.0)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "benchmarks" / "results" / "solvers.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.seconds, args.seed)))
        return
    rows = []
    for name in args.models:
        options = ["--worker", name, "--seconds", str(args.seconds), "--seed", str(args.seed)]
        row = harness.measure("benchmarks.solvers", options, args.timeout)
        rows.append({"model": name, **row})
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "gaps"}))
        for g in row.get("gaps", []):
            print(f"  {g['limits']}: " + ", ".join(f"{k} {v:+.2%}" for k, v in g["gap"].items()) + f"  {g['milp']['note']}")
    gaps = [g["gap"]["greedy"] for r in rows for g in r.get("gaps", []) if g["gap"]]
    result = {
        **harness.about(), "models": rows,
        "claims": {
            "plans_per_s_of_resnet50": next((r.get("plans_per_s") for r in rows if r["model"] == "resnet50"), None),
            "least_claimed": LEAST_PER_SECOND, "largest_gap_of_greedy": max(gaps, default=None),
            "largest_gap_claimed": LARGEST_GAP,
        },
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["claims"]))


if __name__ == "__main__":
    main()
