"""What training blocks one by one recovers, beside refit: `python -m benchmarks.reconstruct --data ../shared/data`.

*stories260k*: neurons of the feed-forward layers are cut by two-probe OBS to shares of the non-embedding parameters, as in
`benchmarks.language_models`; perplexity as cut, after `bough.refit`, and after `bough.recovery.reconstruct` of the refitted and
of the cut model, on the same 49,152 tokens in batches of 8 windows. *resnet20*: cut by OBS to shares of the MACs; accuracy on
10,000 test images of CIFAR-10, on the task's calibration images. Rows are written one by one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import bough
from benchmarks import harness
from benchmarks.cifar import load_module
from benchmarks.language_models import batched, perplexity, stories
from benchmarks.tasks import TASKS
from bough.storage import write_text

RESULTS = harness.ROOT / "benchmarks" / "results" / "reconstruct.json"


def rows(
    dense: Any, plans: dict[str, bough.Plan], data: list[Any], measure: Callable[[Any], float], epochs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a row for each plan."""
    for name, plan in plans.items():
        small = bough.cut(dense, plan)
        row: dict[str, Any] = {"cut": measure(small)}
        start = time.process_time()
        refitted = bough.refit(dense, small, plan, data).model
        row |= {"refit": measure(refitted), "refit_cpu_seconds": time.process_time() - start}
        start = time.process_time()
        done = bough.recovery.reconstruct(dense, refitted, plan, data, epochs=epochs)
        row |= {"reconstructed": measure(done.model), "reconstruct_cpu_seconds": time.process_time() - start}
        row |= done.to_dict()
        row["without_refit"] = measure(bough.recovery.reconstruct(dense, small, plan, data, epochs=epochs).model)
        yield name, row


def language_model(folder: Path, epochs: int, shares: list[float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cuts of a language model."""
    _, dense, _, test, text = stories(folder)
    inner = sum(p.numel() for n, p in dense.named_parameters() if "embed" not in n)
    outer = sum(p.numel() for p in dense.parameters()) - inner
    score = batched(text[:64], 16)
    inputs = {"input_ids": score[0]["input_ids"][:2]}
    others = [g.name for g in bough.trace(dense, inputs).groups if g.kind != "neuron"]
    graph = bough.trace(dense, inputs, ignore=others)
    scores = bough.score(graph, "obs(relative=True, probes=2)", score)
    plans = {
        f"stories260k {share:.0%}": bough.plan(graph, scores, bough.Budget(params=outer + share * inner), allocation="error")
        for share in shares
    }
    yield from rows(dense, plans, batched(text[:192], 8), lambda net: perplexity(net, test), epochs)


def resnet(folder: Path, epochs: int, shares: list[float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cuts of a convolutional network."""
    task = TASKS["resnet20"](load_module(folder), 10000)
    batches = [b if isinstance(b, torch.Tensor) else b[0] for b in task.calibration]
    data = [part for batch in batches for part in batch.split(64)]
    graph = bough.trace(task.model, data[0][:2])
    scores = bough.score(graph, bough.importance.OBS(sites=64, relative=True), data[: len(data) // 2])
    plans = {
        f"resnet20 {share:.0%} of the MACs": bough.plan(
            graph, scores, bough.Budget(macs=f"{share:.0%}"), allocation="error", ignore=task.ignore
        )
        for share in shares
    }
    measure = lambda net: float(next(iter(task.measure(net).values())))  # noqa: E731
    yield from rows(task.model, plans, data, measure, epochs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--models", nargs="*", default=["stories260k", "resnet20"])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.8, 0.5])
    given = parser.parse_args()
    for model in given.models:
        for name, row in (language_model if model == "stories260k" else resnet)(given.data, given.epochs, given.shares):
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
            results["rows"][name] = {**row, "epochs": given.epochs, "about": harness.about()}
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
            print(name, {k: v for k, v in row.items() if k != "blocks"}, flush=True)


if __name__ == "__main__":
    main()
