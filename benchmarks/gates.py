"""Gates trained on frozen weights, beside scores: `python -m benchmarks.gates --data ../shared/data`.

stories260K, neurons of the feed-forward layers, shares of the non-embedding parameters, as in `benchmarks.language_models`. A
gate and a scale multiply each neuron; weights are frozen, and both are trained by Adam on the language model's loss over 192
windows (49,152 tokens), with as many neurons open as the plan of two-probe OBS keeps in all layers together. Gates begin at the
ranks of these scores. *straight-through*: the gates of the highest logits are 1, the others 0; gradients are those of sigmoids.
*annealed*: gates are sigmoids whose sum is the number of neurons, and whose temperature falls from 1 to 0.02. The neurons of
the highest logits are then kept, cut without their scales, and refitted on the same windows. *scores*: the plan of OBS itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bough
from benchmarks import harness
from benchmarks.language_models import batched, perplexity, stories
from bough.storage import write_text

RESULTS = harness.ROOT / "benchmarks" / "results" / "gates.json"
KINDS = {"annealed": 0.02, "straight-through": 0.01}  # learning rates


class Gates:
    """The gates and scales of all neurons of a language model whose weights are frozen."""

    def __init__(self, dense: Any, start: list[np.ndarray], kept: int) -> None:
        flat = np.concatenate(start)
        ranks = flat.argsort().argsort() / len(flat)
        self.logits = torch.nn.Parameter(torch.tensor(4 * ranks - 2, dtype=torch.float32))
        self.scales = torch.nn.Parameter(torch.ones(len(flat)))
        self.kept, self.sizes, self.temperature = kept, [len(s) for s in start], 1.0
        self.open: tuple[torch.Tensor, ...] = ()
        layers = [m for n, m in dense.named_modules() if n.endswith("mlp")]
        self.hooks = [m.down_proj.register_forward_pre_hook(self._multiplied(i)) for i, m in enumerate(layers)]

    def _multiplied(self, layer: int) -> Callable[[Any, Any], Any]:
        return lambda module, args: (args[0] * self.open[layer],) if self.open else None

    def set(self, kind: str) -> None:
        """Set the gates of the next run."""
        gates = self._annealed() if kind == "annealed" else self._straight_through()
        self.open = (gates * self.scales).split(self.sizes)

    def hard(self) -> torch.Tensor:
        """1 for the neurons of the highest logits, as many as are kept; 0 for the others."""
        return torch.zeros(len(self.logits)).index_fill_(0, self.logits.topk(self.kept).indices, 1.0)

    def _straight_through(self) -> torch.Tensor:
        soft = torch.sigmoid(self.logits)
        return self.hard() + soft - soft.detach()

    def _annealed(self) -> torch.Tensor:
        low, high = self.logits.detach().min() - 20, self.logits.detach().max() + 20
        for _ in range(50):
            middle = (low + high) / 2
            many = torch.sigmoid((self.logits.detach() - middle) / self.temperature).sum() > self.kept
            low, high = (middle, high) if many else (low, middle)
        return torch.sigmoid((self.logits - low) / self.temperature)


def trained(dense: Any, gates: Gates, kind: str, text: torch.Tensor, epochs: int) -> None:
    """Train the gates and scales."""
    groups = [{"params": [gates.logits], "lr": KINDS[kind]}, {"params": [gates.scales], "lr": KINDS[kind] / 10}]
    optimizer, steps = torch.optim.Adam(groups), epochs * -(-len(text) // 8)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        for i, ids in enumerate(text[torch.randperm(len(text), generator=torch.Generator().manual_seed(epoch))].split(8)):
            gates.temperature = 0.02 ** ((epoch * (steps // epochs) + i) / steps)
            gates.set(kind)
            logits = dense(input_ids=ids[:, :-1], use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            decay.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.8, 0.6, 0.5])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    given = parser.parse_args()
    _, dense, _, test, text = stories(given.data)
    score, data = batched(text[:64], 16), batched(text[:192], 16)
    inner = sum(p.numel() for n, p in dense.named_parameters() if "embed" not in n)
    outer = sum(p.numel() for p in dense.parameters()) - inner
    inputs = {"input_ids": score[0]["input_ids"][:2]}
    graph = bough.trace(dense, inputs, ignore=[g.name for g in bough.trace(dense, inputs).groups if g.kind != "neuron"])
    scores = bough.score(graph, "obs(relative=True, probes=2)", score)
    names = [g.name for g in graph.groups]
    dense.requires_grad_(False)

    def measured(plan: bough.Plan) -> dict[str, Any]:
        small = bough.cut(dense, plan)
        refitted = bough.refit(dense, small, plan, data).model
        kept = [plan.groups[n][0] for n in names]
        return {"kept": kept, "cut": perplexity(small, test), "refit": perplexity(refitted, test)}

    for share in given.shares:
        budget = bough.Budget(params=outer + share * inner)
        plan = bough.plan(graph, scores, budget, allocation="error")
        record(f"{share:.0%} scores", measured(plan))
        for kind in given.kinds:
            start = time.process_time()
            gates = Gates(dense, [scores[n] for n in names], sum(plan.groups[n][0] for n in names))
            trained(dense, gates, kind, text[:192], given.epochs)
            gates.open = ()
            for hook in gates.hooks:
                hook.remove()
            keep = {n: int(h.sum()) for n, h in zip(names, gates.hard().split(gates.sizes), strict=True)}
            values = gates.logits.detach().double().split(gates.sizes)
            chosen = bough.plan(graph, {n: v.numpy() for n, v in zip(names, values, strict=True)}, keep=keep)
            used = {"epochs": given.epochs, "train_cpu_seconds": time.process_time() - start}
            record(f"{share:.0%} {kind}", {**measured(chosen), **used})


def record(name: str, row: dict[str, Any]) -> None:
    """Add a row to the results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    results["rows"][name] = {**row, "about": harness.about()}
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    print(name, row, flush=True)


if __name__ == "__main__":
    main()
