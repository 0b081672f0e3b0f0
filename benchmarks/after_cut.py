"""What else is done with a model, after a cut to half of the parameters: each use on the original and on the cut model.

    python -m benchmarks.after_cut --suites timm transformers

Each model is a process of its own with a time limit, forked from one that has imported the libraries. One JSON line each goes
to the out file, where a later run finds what is done: models that are there already are skipped, unless they took too long or
--again is given. The table beside it is made from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import bough
from benchmarks import harness, zoo
from benchmarks.after_cut_table import table
from benchmarks.after_cut_uses import outcomes
from benchmarks.coverage_bough import plain
from tests.zoo.shim import declare_torchvision_ops

OUT = harness.ROOT / "benchmarks" / "results" / "after_cut.jsonl"


def work(suite: str, name: str, seed: int) -> dict[str, Any]:
    """One model: what came of each use, before and after the cut."""
    model, inputs, _ = zoo.build(suite, name, seed)
    before = {use: plain(what) for use, what in outcomes(model, inputs, suite)}
    if all(what == "not meant" for what in before.values()):
        return {"before": before}
    graph = bough.trace(model, inputs)
    try:
        plan = bough.plan(graph, bough.score(graph, "l2"), bough.Budget(params="50%"))
    except bough.BoughError as error:
        return {"before": before, "not_cut": plain(zoo.cause(error))}
    small = bough.cut(model, plan)
    after = {use: plain(what) for use, what in outcomes(small, inputs, suite)}
    stale = [s.to_dict() for s in plan.stale]
    return {"before": before, "after": after, "attributes": len(plan.attributes), "stale": stale}


def measured(task: tuple[str, str, int], timeout: float) -> dict[str, Any]:
    """The work in a process of its own; a failure or a timeout is a result, too."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, task))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(timeout) else {"timeout_s": timeout}
    except EOFError:
        return {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send(end: Any, task: tuple[str, str, int]) -> None:
    try:
        end.send(work(*task))
    except Exception as error:
        end.send({"error": plain(zoo.cause(error))})


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an out file, the last one of each model."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(r["suite"], r["model"]): r for r in lines}.values())


def main() -> int:
    parser = argparse.ArgumentParser(description="what else is done with a model, after a cut to half")
    parser.add_argument("--suites", nargs="+", default=list(zoo.TABLES), choices=zoo.TABLES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of the suites")
    parser.add_argument("--timeout", type=float, default=240, help="wall seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is done already, too")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    about = harness.about()
    declare_torchvision_ops()
    for library in {"timm", "transformers", "torchvision"} & {*args.suites}:
        importlib.import_module(library)
    done = set() if args.again else {(r["suite"], r["model"]) for r in read(args.out) if "timeout_s" not in r}
    models = [(s, n) for s in args.suites for n in zoo.suite(s) if not args.models or n in args.models]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as out:
        for suite, name in track([m for m in models if m not in done], "after a cut"):
            result = measured((suite, name, args.seed), args.timeout)
            out.write(json.dumps({"suite": suite, "model": name, "seed": args.seed, **result, **about}) + "\n")
            out.flush()
    results = read(args.out)
    args.out.write_text("".join(json.dumps(r) + "\n" for r in results))
    args.out.with_suffix(".md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
