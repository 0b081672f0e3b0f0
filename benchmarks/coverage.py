"""What of the zoo bough can prune with no hint, beside Torch-Pruning.

    python -m benchmarks.coverage --suites torchvision small --tools bough

Each model and tool is a fresh process with a time limit. One JSON line each goes to the out file, where a later run finds
what is done: models already there with the same commit are skipped, unless --again. The table beside it is made from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import coverage_table, harness, zoo

TOOLS = {"bough": "benchmarks.coverage_bough", "torch-pruning": "benchmarks.torch_pruning"}
OUT = harness.ROOT / "benchmarks" / "results" / "coverage.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an out file, the last one of each model and tool."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(r["tool"], r["suite"], r["model"]): r for r in lines}.values())


def commit() -> str:
    """The commit of what is measured."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=harness.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """(tool, suite, model) of all that is asked for and not done."""
    version = {"bough": commit()}  # Torch-Pruning's results do not depend on it
    done = {(r["tool"], r["suite"], r["model"]): r for r in ([] if args.again else read(args.out))}
    for tool in args.tools:
        for suite in args.suites:
            for name in zoo.suite(suite):
                before = done.get((tool, suite, name))
                fresh = before is None or version.get(tool, before["commit"]) != before["commit"]
                if fresh and (not args.models or name in args.models):
                    yield tool, suite, name


def one(task: tuple[str, str, str], args: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """One model by one tool in a fresh process."""
    tool, suite, name = task
    worker = ["--worker", tool, suite, name, "--seed", str(args.seed)]
    result = harness.measure("benchmarks.coverage", worker, args.timeout)
    return {"tool": tool, "suite": suite, "model": name, "seed": args.seed, "commit": commit(), **result, **about}


def work(tool: str, suite: str, name: str, seed: int) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(importlib.import_module(TOOLS[tool]).work(suite, name, seed)))


def main() -> int:
    parser = argparse.ArgumentParser(description="what can be pruned with no hint, beside Torch-Pruning")
    parser.add_argument("--suites", nargs="+", default=list(zoo.TABLES), choices=zoo.TABLES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of the suites")
    parser.add_argument("--tools", nargs="+", default=["bough"], choices=TOOLS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=120, help="wall seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is done already, too")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "SUITE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker, seed=args.seed)
        return 0
    about, tasks = harness.about(), list(wanted(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as bar, ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
        row = bar.add_task("coverage", total=len(tasks))
        for result in pool.map(lambda task: one(task, args, about), tasks):
            out.write(json.dumps(result) + "\n")
            out.flush()
            bar.update(row, advance=1, description=f"{result['suite']}:{result['model']}")
    results = read(args.out)
    args.out.write_text("".join(json.dumps(r) + "\n" for r in results))
    table = coverage_table.table(results)
    args.out.with_suffix(".md").write_text(table)
    print(table.split("\n## ")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
