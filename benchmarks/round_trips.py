"""Folders that the command line writes, loaded by stock transformers in a fresh process, beside the pruned model in memory.

    python -m benchmarks.round_trips

For each family, a tiny model with random weights is saved by `save_pretrained`. `bough prune hf:PATH --uniform --out DIR` runs
as a process of its own. Another process imports transformers alone, loads DIR by `from_pretrained`, and generates greedily with
and without cache (BERT: logits). A third way is `bough.prune` in this process, with the same arguments: its model gives the
tokens (logits) that the others have to equal.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bough
from benchmarks.harness import ROOT, about
from bough.cli.models import resolve
from tests.zoo import randomize, transformers_models
from tests.zoo.shim import declare_torchvision_ops

FAMILIES = ("llama_gqa", "qwen2", "qwen3_moe", "mistral", "gemma2", "gpt2", "bert", "t5")
OPTIONS = ("--budget", "params=70%", "--importance", "l2", "--no-refit", "--uniform")
PRELUDE = "from tests.zoo.shim import declare_torchvision_ops; declare_torchvision_ops(); "  # as a torchvision that fits would
COMMAND = PRELUDE + "from bough.cli import main; main()"
IDS = [[3, 7, 11, 5], [4, 9, 8, 30]]
NEW_TOKENS = 12
LOAD = f"""{PRELUDE}
import json, sys, torch, transformers
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
model, told = getattr(transformers, config.architectures[0]).from_pretrained(sys.argv[1], output_loading_info=True)
model.eval()
ids = torch.tensor({IDS})
if model.can_generate():
    given = dict(max_new_tokens={NEW_TOKENS}, min_new_tokens={NEW_TOKENS}, do_sample=False)
    found = [model.generate(ids, use_cache=cached, **given).tolist() for cached in (True, False)]
else:
    with torch.no_grad():
        found = model(ids).logits.tolist()
print(json.dumps([found, sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), "bough" in sys.modules]))
"""


def process(code: str, *arguments: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


@torch.no_grad()
def given_by(model: nn.Module) -> Any:
    """Tokens with and without cache, or logits, as the fresh process computes them."""
    ids, m = torch.tensor(IDS), model.eval()
    if not m.can_generate():  # type: ignore[operator]
        return m(ids).logits.tolist()
    given = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return [m.generate(ids, use_cache=cached, **given).tolist() for cached in (True, False)]  # type: ignore[operator]


def round_trip(family: str, folder: Path) -> dict[str, Any]:
    """One family."""
    torch.manual_seed(0)
    source, out = folder / family, folder / f"{family}-small"
    randomize(transformers_models.ZOO[family]()[0]).float().save_pretrained(source)
    process(COMMAND, "prune", f"hf:{source}", *OPTIONS, "--out", str(out))
    found, missing, unexpected, imported = json.loads(process(LOAD, str(out)).splitlines()[-1])
    original = resolve(f"hf:{source}")
    budget = bough.Budget(params="70%")
    pruned = bough.prune(original.model, original.inputs, budget, importance="l2", refit=False, uniform=True)
    expected = given_by(pruned.model)
    return {
        "family": family, "command": f"bough prune hf:{family} {' '.join(OPTIONS)} --out {family}-small",
        "params_kept": pruned.plan.cost.params / pruned.plan.original.params,
        "compared": "tokens with and without cache" if pruned.model.can_generate() else "logits",  # type: ignore[operator]
        "equal": found == expected, "missing_keys": missing, "unexpected_keys": unexpected, "bough_imported": imported,
    }  # fmt: skip


def main() -> None:
    declare_torchvision_ops()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for family in FAMILIES:
            rows.append(round_trip(family, Path(folder)))
            print(rows[-1], flush=True)
    path = ROOT / "benchmarks" / "results" / "round_trips.json"
    path.write_text(json.dumps({**about(), "new_tokens": NEW_TOKENS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
