"""What is left of a small language model after a cut: perplexity by criterion, allocation and share kept.

    python -m benchmarks.language_models --data ../shared/data

stories260K, a real Llama (5 layers, 64 wide, 260,032 parameters, of which the embedding, also the output layer, has 32,768),
is cut to shares of its *non-embedding* parameters (227,264). Perplexity is that of `tinystories_sample_cs336` in windows of
255 tokens after a BOS; calibration data are windows of another text of TinyStories. *Width*: neurons of the feed-forward
layers alone, or all groups (heads, head dims, neurons, the hidden state). *Depth*: whole layers by block influence. *Scratch*:
the model of the uniform cut with new random weights. Each is measured as it is cut, after `bough.refit`, and after
`bough.distill` of the refitted model on one pass over windows of the calibration text (scratch models: on the same windows); a
sample is generated greedily from "Once upon a time". No seed: data is taken from the start, and scratch weights are drawn with
seed 0.

Rows are written one by one; a run that ended early continues behind the last one, if its options are the same.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import bough
from benchmarks import harness
from benchmarks.cifar import load_module
from bough.storage import write_text
from tests.zoo.shim import declare_torchvision_ops

RESULTS = harness.ROOT / "benchmarks" / "results" / "language_models.json"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
GOAL = 0.8  # a perplexity of 4.6 after refit is asked for at this share
WIDTHS = (  # groups, criterion, allocation
    ("feed-forward", "obs(relative=True, probes=2)", "error"), ("feed-forward", "l2", "uniform"),
    ("feed-forward", "random", "uniform"), ("all groups", "obs(relative=True)", "error"), ("feed-forward", "wanda", "uniform"),
    ("feed-forward", "flap", "uniform"), ("feed-forward", "obs(relative=True)", "error"), ("all groups", "l2", "uniform"),
)  # fmt: skip
WINDOW, LEARNING_RATE = 255, 1e-3


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


def stories(folder: Path) -> tuple[Any, Any, Callable[[str], list[int]], list[list[int]], torch.Tensor]:
    """Return (tokenizer, model, encoder, test texts, training windows [n, WINDOW + 1]) of stories260K."""
    load = load_module(folder)
    declare_torchvision_ops()  # transformers imports it
    encode = encoder(tokenizer := load.Tok512())
    test = windows(load.text("tinystories_sample_cs336"), encode, None)
    text = torch.tensor(windows(load.text("tinystories_train_head_197k"), encode, WINDOW + 1))
    return tokenizer, load.stories260k(), encode, test, text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--windows", type=int, default=64, help="windows of 256 tokens for scores")
    parser.add_argument("--refit-windows", type=int, default=192, help="windows for refit")
    parser.add_argument("--train-windows", type=int, default=192, help="windows for distillation, in batches of 8")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--table", action="store_true", help="print the results as a table of docs/language_models.md, and end")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RESULTS.read_text())["rows"]))
        return
    tokenizer, dense, encode, test, text = stories(given.data)
    data = Data(*(batched(text[:n], size) for n, size in (
        (given.windows, 16), (given.refit_windows, 16), (given.train_windows, 8))))  # fmt: skip
    study = Study(dense, test, data, tokenizer, encode)
    goal = [s for s in given.shares if s == GOAL]
    for shares in (goal, [s for s in given.shares if s != GOAL]):  # the share with a goal first
        for groups, criterion, allocation in WIDTHS:
            for share in shares:
                study.width(groups, criterion, allocation, share)
        for share in shares:
            study.scratch(share)
    for layers in (4, 3):
        study.depth(layers)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexities of cuts to shares: as cut / after refit / after distillation; what was not measured is left open."""
    found: dict[str, dict[float, str]] = {}
    for row in (r for r in rows if "share" in r):
        name = ", ".join(row[k] for k in ("method", "criterion", "allocation") if k in row).removeprefix("width, ")
        cell = " / ".join(f"{row[k]:.2f}" for k in ("one_shot", "refit", "distilled") if k in row)
        found.setdefault(name, {})[row["share"]] = cell
    lines = [f"| cut | {' | '.join(f'{s:.0%}' for s in SHARES)} |", f"|---{'|---' * len(SHARES)}|"]
    return "\n".join([*lines, *(f"| {n} | {' | '.join(cells.get(s, '') for s in SHARES)} |" for n, cells in found.items())])


def batched(ids: torch.Tensor, size: int) -> list[dict[str, torch.Tensor]]:
    """Batches as the model takes them."""
    return [{"input_ids": part} for part in ids.split(size)]


@dataclass(frozen=True)
class Data:
    """Batches of the calibration text, from its start."""

    score: list[dict[str, torch.Tensor]]
    refit: list[dict[str, torch.Tensor]]
    train: list[dict[str, torch.Tensor]]

    def tokens(self) -> dict[str, int]:
        """The number of tokens for each purpose."""
        return {f"{f.name}_tokens": sum(b["input_ids"].numel() for b in getattr(self, f.name)) for f in fields(self)}


class Study:
    """The measurements of one model; each is added to the results at once, and none is made twice."""

    def __init__(self, dense: Any, test: list[list[int]], data: Data, tokenizer: Any, encode: Any) -> None:
        self.dense, self.test, self.data, self.tokenizer, self.encode = dense, test, data, tokenizer, encode
        self.inner = sum(p.numel() for n, p in dense.named_parameters() if "embed" not in n)
        self.outer = sum(p.numel() for p in dense.parameters()) - self.inner
        settings = {**data.tokens(), "test_tokens": sum(len(w) - 1 for w in test), "non_embedding_params": self.inner}
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        continued = all(before.get(k) == v for k, v in settings.items())
        self.about = {k: v for k, v in before.items() if k != "rows"} if continued else {**harness.about(), **settings}
        self.rows: list[dict[str, Any]] = before["rows"] if continued else []
        self._row({"method": "dense"}, lambda: {"perplexity": perplexity(dense, test), "text": self._text(dense)})

    @functools.cached_property
    def graphs(self) -> dict[str, Any]:
        """Graphs by the groups that may be cut."""
        inputs = {"input_ids": self.data.score[0]["input_ids"][:2]}
        whole = bough.trace(self.dense, inputs)
        neurons = bough.trace(self.dense, inputs, ignore=[g.name for g in whole.groups if g.kind != "neuron"])
        return {"all groups": whole, "feed-forward": neurons}

    @functools.lru_cache(None)  # noqa: B019 - the study lives as long as the process
    def scores(self, groups: str, criterion: str) -> Any:
        """Scores, computed once."""
        return bough.score(self.graphs[groups], criterion, self.data.score)

    def plan(self, groups: str, criterion: str, allocation: str, share: float) -> Any:
        """A plan to a share of the non-embedding parameters."""
        budget = bough.Budget(params=self.outer + share * self.inner)
        return bough.plan(self.graphs[groups], self.scores(groups, criterion), budget, allocation=allocation)

    def width(self, groups: str, criterion: str, allocation: str, share: float) -> None:
        """Cut widths to a share of the non-embedding parameters."""
        about = {"method": f"width, {groups}", "criterion": criterion, "allocation": allocation, "share": share}
        self._row(about, lambda: self._measured(self.plan(groups, criterion, allocation, share)))

    def depth(self, layers: int) -> None:
        """Leave out layers by block influence."""

        def measured() -> dict[str, Any]:
            graph = self.graphs["all groups"]
            scores = {**bough.score(graph, "l2"), **self.scores("all groups", "block_influence")}
            return self._measured(bough.plan(graph, scores, keep={"model.layers": layers}))

        self._row({"method": "depth", "criterion": "block_influence", "allocation": f"{layers} of 5 layers"}, measured)

    def scratch(self, share: float) -> None:
        """Train the uniform cut of feed-forward layers from new weights, on the tokens of the distillation."""

        def measured() -> dict[str, Any]:
            small = bough.cut(self.dense, self.plan("feed-forward", "l2", "uniform", share))
            torch.manual_seed(0)
            for parameter in small.parameters():
                torch.nn.init.normal_(parameter, std=0.05) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
            return {**self._size(small), **self._distilled(small)}

        self._row({"method": "scratch, feed-forward uniform", "share": share}, measured)

    def _measured(self, plan: Any) -> dict[str, Any]:
        small = bough.cut(self.dense, plan)
        one_shot = perplexity(small, self.test)
        refitted = bough.refit(self.dense, small, plan, self.data.refit).model
        found = {"one_shot": one_shot, "refit": perplexity(refitted, self.test), "text_of_refit": self._text(refitted)}
        return {**self._size(small), **found, **self._distilled(refitted)}

    def _size(self, model: Any) -> dict[str, Any]:
        inner = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
        return {"non_embedding_kept": inner / self.inner, "params": sum(p.numel() for p in model.parameters())}

    def _distilled(self, small: Any) -> dict[str, Any]:
        """Distil the dense model into a copy, on one pass over the training windows."""
        options = bough.Training(epochs=1, lr=LEARNING_RATE, optimizer="adamw", weight_decay=0.0, clip=1.0, progress=False)
        with torch.enable_grad():
            bough.distill(
                small,
                self.dense,
                self.data.train,
                options,
                distillation=bough.recovery.Distillation(logits=1.0, temperature=1.0),
            )
        return {"distilled": perplexity(small, self.test), "text": self._text(small)}

    def _text(self, model: Any) -> str:
        ids = torch.tensor([[1, *self.encode("Once upon a time")]])
        made = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        return str(self.tokenizer.decode(made[0, 1:].tolist()))

    def _row(self, about: dict[str, Any], measured: Callable[[], dict[str, Any]]) -> None:
        """Add a row to the results, unless it is there."""
        if any(about.items() <= row.items() for row in self.rows):
            return
        start = time.process_time()
        row = {**about, **measured(), "cpu_seconds": time.process_time() - start}
        self.rows.append(row)
        write_text(RESULTS, json.dumps({**self.about, "rows": self.rows}, indent=1) + "\n")
        print({k: v for k, v in row.items() if not k.startswith("text")}, flush=True)


if __name__ == "__main__":
    main()
