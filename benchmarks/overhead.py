"""CPU time and memory of bough beside Torch-Pruning, on models that both are given in one run.

    python -m benchmarks.overhead --repeats 5 --models resnet50 bert_base

Each measurement is a fresh process, the two tools taking turns; CPU time (of all threads) and not wall time is compared.
bough: trace + score + plan + cut, to a quarter of the MACs by equal shares. Torch-Pruning, as its documentation has it:
build the pruner + one step, at a pruning ratio of 0.5 (which leaves about a quarter of the MACs), told the heads and the
output layer. Imports and building the model are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.models import MODELS, RESIDUAL, build, documented

TOOLS = ("bough", "torch-pruning")
TIMEOUTS = {"llama_gqa": 100.0}  # wall seconds; the others get --timeout
# the limits: times faster, 320 over 40 blocks, planning memory over the model, CPU seconds of the deepest model
FASTER, GROWTH, EXTRA_MB, DEEP_S = 2.0, 12.0, 50.0, 10.0


# --- the workers: one measurement each, printed as one line of JSON ---


def resident_mb() -> float:
    """What this process holds in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return peak_mb()


def peak_mb() -> float:
    """The most this process has held since `forget_peak`, or since it began where the system cannot forget."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def forget_peak() -> None:
    """Building a model may take more than the model: that is not the tool's doing (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def work_bough(name: str, seed: int) -> dict[str, Any]:
    import bough

    tiny, x = build("tiny", seed)
    bough.prune(tiny, x, bough.Budget(macs="50%"))  # what is imported on first use is not what is measured
    model, inputs = build(name, seed)
    before = parameters(model)
    forget_peak()
    base = resident_mb()
    stamps = [time.process_time()]
    graph = bough.trace(model, inputs)
    stamps.append(time.process_time())
    scores = bough.score(graph, bough.importance.Magnitude(p=2))
    stamps.append(time.process_time())
    plan = bough.plan(graph, scores, bough.Budget(macs="25%"), allocation="uniform")
    stamps.append(time.process_time())
    planned = peak_mb()
    start = time.process_time()
    small = bough.cut(model, plan)
    cut_s = time.process_time() - start
    stages = dict(zip(("trace", "score", "plan"), (b - a for a, b in itertools.pairwise(stamps)), strict=True))
    stages["cut"] = cut_s
    return {
        "cpu_s": sum(stages.values()),
        "stages": stages,
        "planning_extra_mb": planned - base,
        "all_extra_mb": peak_mb() - base,
        "model_mb": size_mb(model),
        "params": [before, parameters(small)],
    }


def work_torch_pruning(name: str, seed: int) -> dict[str, Any]:
    import torch_pruning as tp

    tiny, x = build("tiny", seed)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    tp.pruner.MetaPruner(tiny, x, importance=importance, pruning_ratio=0.5, **documented("tiny", tiny)).step()
    model, inputs = build(name, seed)
    before, options = parameters(model), documented(name, model)
    forget_peak()
    base = resident_mb()
    stamps = [time.process_time()]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.MetaPruner(model, inputs, importance=importance, pruning_ratio=0.5, **options)
    stamps.append(time.process_time())
    pruner.step()
    stamps.append(time.process_time())
    return {
        "cpu_s": stamps[-1] - stamps[0],
        "stages": {"build_and_init": stamps[1] - stamps[0], "step": stamps[2] - stamps[1]},
        "all_extra_mb": peak_mb() - base,
        "params": [before, parameters(model)],
    }


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def size_mb(model: Any) -> float:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / 1e6


def work(tool: str, name: str, seed: int) -> None:
    import torch

    result = work_bough(name, seed) if tool == "bough" else work_torch_pruning(name, seed)
    print(json.dumps({**result, "threads": torch.get_num_threads()}))


# --- the run ---


def one(tool: str, name: str, seed: int, timeout: float) -> dict[str, Any]:
    return harness.measure("benchmarks.overhead", ["--worker", tool, name, "--seed", str(seed)], timeout)


def summary(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of the repeats that finished, with every repeat."""
    times = [r["cpu_s"] for r in repeats if "cpu_s" in r]
    out: dict[str, Any] = {"repeats": repeats}
    if times:
        out |= {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}
        out["spread"] = (max(times) - min(times)) / out["median_s"]
    extra = [r["planning_extra_mb"] for r in repeats if "planning_extra_mb" in r]
    if extra:
        out["planning_extra_mb"] = max(extra)
    return out


def run(names: list[str], tools: list[str], repeats: int, seed: int, timeout: float, patience: float) -> dict[str, Any]:
    """All measurements; a tool that has used up `patience` seconds on a model, or failed, is not asked again."""
    results: dict[str, Any] = {}
    for name in names:
        taken: dict[str, list[dict[str, Any]]] = {t: [] for t in tools}
        spent = dict.fromkeys(tools, 0.0)
        for _ in range(repeats):
            for tool in tools:
                if spent[tool] >= patience or (taken[tool] and "cpu_s" not in taken[tool][-1]):
                    continue
                start = time.perf_counter()
                taken[tool].append(one(tool, name, seed, TIMEOUTS.get(name, timeout)))
                spent[tool] += time.perf_counter() - start
        results[name] = {t: summary(r) for t, r in taken.items()}
        results[name]["ratio"], results[name]["ratio_is_lower_bound"] = ratio(results[name])
        print(row(name, results[name]), flush=True)
    return results


def ratio(result: dict[str, Any]) -> tuple[float | None, bool]:
    """Torch-Pruning's median over bough's; from the time it had used when stopped, if it did not finish."""
    ours, theirs = (result.get(t, {}) for t in TOOLS)
    if "median_s" not in ours:
        return None, False
    if "median_s" in theirs:
        return theirs["median_s"] / ours["median_s"], False
    stopped = [r["cpu_s_when_stopped"] for r in theirs.get("repeats", ()) if "cpu_s_when_stopped" in r]
    return (max(stopped) / ours["median_s"], True) if stopped else (None, False)


def limits(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The limits, each with what was measured; `passed` is None where it could not be."""
    out: list[dict[str, Any]] = []

    def check(limit: str, value: float | None, passed: bool) -> None:
        out.append({"limit": limit, "value": value, "passed": None if value is None else passed})

    for name, result in results.items():
        check(f"{name}: at least {FASTER:g}x faster", result["ratio"], (result["ratio"] or 0) >= FASTER)
        extra = result.get("bough", {}).get("planning_extra_mb")
        check(f"{name}: planning takes at most {EXTRA_MB:g} MB over the model", extra, (extra or 0) <= EXTRA_MB)
    deep = results.get("llama_48_layers", {}).get("bough", {}).get("max_s")
    check(f"llama_48_layers: traced, planned and cut in {DEEP_S:g} s", deep, (deep or 0) <= DEEP_S)
    few, many = (results.get(f"residual_{n}", {}).get("bough", {}).get("median_s") for n in (RESIDUAL[0], RESIDUAL[-1]))
    growth = many / few if few and many else None
    check(f"{RESIDUAL[-1]} over {RESIDUAL[0]} blocks: at most {GROWTH:g}", growth, (growth or 0) <= GROWTH)
    return out


def cell(result: dict[str, Any]) -> str:
    if "median_s" in result:
        return f"{result['median_s']:8.3f} [{result['min_s']:.3f}, {result['max_s']:.3f}] n={len(result['repeats'])}"
    last = result["repeats"][-1] if result.get("repeats") else {}
    return f"> {last['timeout_s']:g} s" if "timeout_s" in last else last.get("error", "-")[:40]


def row(name: str, result: dict[str, Any]) -> str:
    value = f"{'>' if result['ratio_is_lower_bound'] else ''}{result['ratio']:.1f}x" if result["ratio"] else "-"
    extra = result.get("bough", {}).get("planning_extra_mb")
    memory = f"{extra:.0f}" if extra is not None else "-"
    return f"{name:13} {cell(result.get('bough', {})):40} {cell(result.get('torch-pruning', {})):40} {value:>8} {memory:>6}"


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU time and memory of bough beside Torch-Pruning")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="wall seconds for one measurement")
    parser.add_argument("--patience", type=float, default=120, help="wall seconds for a tool on a model; one repeat at least")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "benchmarks" / "results" / "overhead.json")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker, seed=args.seed)
        return 0
    about = harness.about()
    print(f"{'model':13} {'bough, CPU s [min, max]':40} {'torch-pruning, CPU s [min, max]':40} {'ratio':>8} {'MB':>6}")
    results = run(args.models, args.tools, args.repeats, args.seed, args.timeout, args.patience)
    checks = limits(results)
    print()
    for c in checks:
        verdict = {True: "pass", False: "FAIL", None: "not measured"}[c["passed"]]
        print(f"{verdict:13} {c['limit']}" + ("" if c["value"] is None else f": {c['value']:.2f}"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about |= {"seed": args.seed, "repeats": args.repeats, "usage": __doc__, "results": results, "limits": checks}
    args.out.write_text(json.dumps(about, indent=1) + "\n")
    return 1 if any(c["passed"] is False for c in checks) else 0


if __name__ == "__main__":
    raise SystemExit(main())
