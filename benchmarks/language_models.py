"""What is left of a small language model after a cut: perplexity by criterion, allocation and share kept, without training.

    python -m benchmarks.language_models --data ../shared/data

stories260K, a real Llama (5 layers, 64 wide, 260,032 parameters, of which the embedding, also the output layer, has 32,768),
is cut to shares of its *non-embedding* parameters (227,264). Perplexity is that of `tinystories_sample_cs336` in windows of
255 tokens after a BOS; calibration data are windows of another text of TinyStories. *Width*: neurons of the feed-forward
layers alone, or all groups (heads, head dims, neurons, the hidden state). *Depth*: whole layers by block influence. Each is
measured as it is cut and after `bough.refit`; a sample is generated greedily from "Once upon a time". No seed: the data is
taken from the start.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import bough
from benchmarks import harness
from tests.zoo.shim import declare_torchvision_ops

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
WIDTHS = (  # criterion, allocation
    ("random", "uniform"), ("l2", "uniform"), ("wanda", "uniform"), ("flap", "uniform"), ("obs(relative=True)", "error"),
)  # fmt: skip
WINDOW = 255


def encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """The tokenizer's `encode`, word by word: no token of this vocabulary has a space inside."""

    @functools.lru_cache(None)
    def word(text: str) -> tuple[int, ...]:
        ids = [i for c in text for i in ([tokenizer.index[c.encode()]] if c.encode() in tokenizer.index else _bytes(c))]
        while True:
            pairs = [(tokenizer.vocab[a] + tokenizer.vocab[b], i) for i, (a, b) in enumerate(itertools.pairwise(ids))]
            known = [(tokenizer.scores[m], -i, m) for pair, i in pairs if (m := tokenizer.index.get(pair)) is not None]
            if not known:
                return tuple(ids)
            _, place, merged = max(known)
            ids[-place : -place + 2] = [merged]

    return lambda text: [i for w in re.findall(r" [^ ]*|[^ ]+", f" {text}") for i in word(w)]


def _bytes(character: str) -> list[int]:
    return [b + 3 for b in character.encode()]


def windows(text: str, encode: Callable[[str], list[int]], length: int | None) -> list[list[int]]:
    """Windows of a text's stories, each after a BOS; those of `length` tokens alone, if it is given."""
    stories = [s.strip() for s in text.split("<|endoftext|>") if s.strip()]
    found = [[1, *ids[i : i + WINDOW]] for ids in map(encode, stories) for i in range(0, len(ids), WINDOW)]
    return [w for w in found if length is None or len(w) == length]


@torch.no_grad()
def perplexity(model: Any, tokens: Sequence[list[int]]) -> float:
    """The exponential of the mean loss per token; windows of one length are a batch."""
    lengths: dict[int, list[list[int]]] = {}
    for window in tokens:
        lengths.setdefault(len(window), []).append(window)
    total, count = 0.0, 0
    for some in lengths.values():
        ids = torch.tensor(some)
        if ids.shape[1] > 1:
            logits = model(input_ids=ids[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
            count += ids[:, 1:].numel()
    return math.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--windows", type=int, default=64, help="calibration windows of 256 tokens")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    given = parser.parse_args()
    if not (given.data / "load.py").is_file():
        raise SystemExit(f"{given.data} has no load.py: give the folder of the real data with --data")
    declare_torchvision_ops()
    sys.path.insert(0, str(given.data.resolve()))
    import load

    tokenizer, dense = load.Tok512(), load.stories260k()
    encode = encoder(tokenizer)
    test = windows(load.text("tinystories_sample_cs336"), encode, None)
    calibration = torch.tensor(windows(load.text("tinystories_train_head_197k"), encode, WINDOW + 1)[: given.windows])
    study = Study(dense, test, [{"input_ids": ids} for ids in calibration.split(16)], tokenizer, encode)
    for share in given.shares:
        for criterion, allocation in WIDTHS:
            study.width("feed-forward", criterion, allocation, share)
        study.width("all groups", "obs(relative=True)", "error", share)
        study.width("all groups", "l2", "uniform", share)
    study.depth(4)
    study.depth(3)


class Study:
    """The measurements of one model; each is added to the results at once."""

    def __init__(self, dense: Any, test: list[list[int]], batches: list[Any], tokenizer: Any, encode: Any) -> None:
        self.dense, self.test, self.batches, self.tokenizer, self.encode = dense, test, batches, tokenizer, encode
        self.path = harness.ROOT / "benchmarks" / "results" / "language_models.json"
        self.inner = sum(p.numel() for n, p in dense.named_parameters() if "embed" not in n)
        self.outer = sum(p.numel() for p in dense.parameters()) - self.inner
        inputs = {"input_ids": batches[0]["input_ids"][:2]}
        whole = bough.trace(dense, inputs)
        neurons = bough.trace(dense, inputs, ignore=[g.name for g in whole.groups if g.kind != "neuron"])
        self.graphs = {"all groups": whole, "feed-forward": neurons}
        self.rows: list[dict[str, Any]] = []
        self.about = {**harness.about(), "calibration_tokens": sum(b["input_ids"].numel() for b in batches),
                      "test_tokens": sum(len(w) - 1 for w in test), "non_embedding_params": self.inner}  # fmt: skip
        self._add({"method": "dense", "perplexity": perplexity(dense, test), "text": self._text(dense)})

    @functools.lru_cache(None)  # noqa: B019 - the study lives as long as the process
    def scores(self, groups: str, criterion: str) -> Any:
        """Scores, computed once."""
        return bough.score(self.graphs[groups], criterion, self.batches)

    def width(self, groups: str, criterion: str, allocation: str, share: float) -> None:
        """Cut widths to a share of the non-embedding parameters."""
        budget = bough.Budget(params=self.outer + share * self.inner)
        start = time.perf_counter()
        plan = bough.plan(self.graphs[groups], self.scores(groups, criterion), budget, allocation=allocation)
        self._measure({"method": f"width, {groups}", "criterion": criterion, "allocation": allocation}, plan, start)

    def depth(self, layers: int) -> None:
        """Leave out layers by block influence."""
        start = time.perf_counter()
        graph = self.graphs["all groups"]
        scores = bough.score(graph, "block_influence", self.batches)
        plan = bough.plan(graph, {**bough.score(graph, "l2"), **scores}, keep={"model.layers": layers})
        self._measure({"method": "depth", "criterion": "block_influence", "allocation": f"{layers} of 5 layers"}, plan, start)

    def _measure(self, about: dict[str, Any], plan: Any, start: float) -> None:
        small = bough.cut(self.dense, plan)
        one_shot = perplexity(small, self.test)
        refitted = bough.refit(self.dense, small, plan, self.batches).model
        inner = sum(p.numel() for n, p in small.named_parameters() if "embed" not in n)
        self._add({
            **about, "non_embedding_kept": inner / self.inner, "params": sum(p.numel() for p in small.parameters()),
            "one_shot": one_shot, "refit": perplexity(refitted, self.test), "seconds": time.perf_counter() - start,
            "text": self._text(refitted),
        })  # fmt: skip

    def _text(self, model: Any) -> str:
        ids = torch.tensor([[1, *self.encode("Once upon a time")]])
        made = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        return str(self.tokenizer.decode(made[0, 1:].tolist()))

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps({**self.about, "rows": self.rows}, indent=1) + "\n")
        print({k: v for k, v in row.items() if k != "text"}, flush=True)


if __name__ == "__main__":
    main()
