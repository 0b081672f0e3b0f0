"""What is left of a mixture of experts after experts are dropped or merged: perplexity by criterion and share kept.

    python -m benchmarks.experts --data ../shared/data --folder experts/

A small Qwen3 mixture (4 layers, 64 wide, 16 experts of 64 neurons in each, 2 of them for a token) is trained here on real
text: Shakespeare, Wikipedia (WikiText-2's validation part) and TinyStories, all but the last tenth of each, on which perplexity
is measured. Then 12 and 8 experts of each layer are kept, chosen at random, by the number of tokens routed to them, by REAP, or
as representatives of clusters; the others are dropped, or merged into those that stay (`bough.recovery.merge_experts`).
Perplexity is measured as cut and after `bough.distill` on one pass over the calibration windows. The trained weights stay in
`--folder`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import bough
from benchmarks import harness
from benchmarks.cifar import load_module
from benchmarks.language_models import encoder
from bough.calibration import as_data, gated_norms
from bough.spaces import unit_sums
from bough.storage import write_text
from tests.zoo.shim import declare_torchvision_ops

RESULTS = harness.ROOT / "benchmarks" / "results" / "experts.json"
TEXTS = "tinyshakespeare_input", "wikitext2_valid", "tinystories_train_head_197k"
WINDOW, BATCH, EXPERTS = 128, 32, 16
CRITERIA = "random", "frequency", "reap", "expert_clusters"


def model() -> Any:
    """A mixture with new weights."""
    declare_torchvision_ops()
    import transformers

    config = transformers.Qwen3MoeConfig(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True, vocab_size=512,
        output_router_logits=False, router_aux_loss_coef=0.01, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen3MoeForCausalLM(config)


def windows(texts: list[str], encode: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows for training, shuffled, and for the test: [n, WINDOW + 1]."""
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for text in texts:
        ids = torch.tensor(encode(text.replace("<|endoftext|>", "")))
        rows = ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
        last = len(rows) * 9 // 10
        parts[0].append(rows[:last])
        parts[1].append(rows[last:])
    train = torch.cat(parts[0])
    return train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))], torch.cat(parts[1])


def loss_of(net: Any, ids: torch.Tensor) -> torch.Tensor:
    """The mean loss per token."""
    logits = net(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train(net: Any, ids: torch.Tensor, steps: int) -> None:
    """Train by AdamW, cosine learning rate, with the router's own balancing loss."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 50) * 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    net.train()
    for step in range(steps):
        batch = ids[torch.arange(step * BATCH, (step + 1) * BATCH) % len(ids)]
        out = net(input_ids=batch[:, :-1], output_router_logits=True)
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), batch[:, 1:].flatten())
        (loss + 0.01 * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    net.eval()


@torch.no_grad()
def perplexity(net: Any, ids: torch.Tensor) -> float:
    """The exponential of the mean loss per token."""
    losses = [loss_of(net, part).double() * len(part) for part in ids.split(64)]
    return math.exp(float(torch.stack(losses).sum()) / len(ids))


def frequency(graph: bough.Graph, data: Any) -> dict[str, Any]:
    """The number of rows that are routed to each expert; L2 norms of other units."""
    scores = dict(bough.score(graph, "l2"))
    for found in gated_norms(graph, as_data(data)):
        for group in graph.groups:
            if group.atom in found.space.atoms:
                scores[group.name] = unit_sums(found.space, group.atom, found.rows)
    return scores


def scores_of(graph: bough.Graph, name: str, data: Any, seed: int) -> dict[str, Any]:
    """Scores by one of `CRITERIA`."""
    if name == "frequency":
        return frequency(graph, data)
    return dict(bough.score(graph, bough.importance.Random(seed) if name == "random" else name, data))


def distilled(small: Any, dense: Any, data: list[dict[str, torch.Tensor]]) -> Any:
    """`small` after one pass of distillation of logits."""
    options = bough.Training(epochs=1, lr=1e-3, optimizer="adamw", weight_decay=0.0, clip=1.0, progress=False)
    how = bough.recovery.Distillation(logits=1.0, temperature=1.0)
    with torch.enable_grad():
        bough.distill(small, dense, data, options, distillation=how)
    return small


def rows(net: Any, calibration: list[dict[str, torch.Tensor]], test: torch.Tensor, seed: int) -> Any:
    """Yield a row for each criterion, number of experts and way."""
    graph = bough.trace(net, {"input_ids": calibration[0]["input_ids"][:2]})
    for name in CRITERIA:
        scores = scores_of(graph, name, calibration, seed)
        for experts in (12, 8):
            plan = bough.plan(graph, scores, keep={"*/expert": experts}, uniform=True)
            for way in ("dropped", "merged"):
                merges = way == "merged"
                small = bough.recovery.merge_experts(graph, plan, calibration).model if merges else bough.cut(net, plan)
                about = {"criterion": name, "experts": experts, "others": way, "perplexity": perplexity(small, test)}
                yield {**about, "distilled": perplexity(distilled(small, net, calibration), test)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("experts"), help="for the trained weights")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--windows", type=int, default=256, help="calibration windows of 128 tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice")
    given = parser.parse_args()
    load, net = load_module(given.data), model()
    ids, test = windows([load.text(t) for t in TEXTS], encoder(load.Tok512()))
    weights = given.folder / f"qwen3_moe_{given.steps}.pt"
    if weights.is_file():
        net.load_state_dict(torch.load(weights))
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        train(net, ids, given.steps)
        torch.save(net.state_dict(), weights)
    net.eval()
    calibration = [{"input_ids": part[:, :-1]} for part in ids[: given.windows].split(16)]
    results = {
        **harness.about(), "steps": given.steps, "train_tokens": given.steps * BATCH * WINDOW, "seed": given.seed,
        "calibration_tokens": given.windows * WINDOW, "test_tokens": len(test) * WINDOW, "dense": perplexity(net, test),
        "rows": [],
    }  # fmt: skip
    start = time.process_time()
    for row in rows(net, calibration, test, given.seed):
        results["rows"].append(row)
        results["cpu_seconds"] = time.process_time() - start
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        print(row, flush=True)
    print("dense", results["dense"])


if __name__ == "__main__":
    main()
