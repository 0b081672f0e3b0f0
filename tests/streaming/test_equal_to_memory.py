"""Pruning file by file gives the tensors that pruning the loaded model gives, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

import bough
from bough.cli.models import resolve
from tests.zoo import transformers_models

FAMILIES = ("llama_tied", "qwen3_moe", "mixtral", "gpt2", "t5", "whisper")
BUDGETS = {"whisper": bough.Budget(params="80%")}  # the width of its hidden state stays


def folder_of(family, folder, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model, _ = transformers_models.ZOO[family]()
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def tensors(folder):
    return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_tensor_by_tensor(family, tmp_path):
    source = folder_of(family, tmp_path / "source", max_shard_size="20KB")
    given = resolve(f"hf:{source}")
    options, budget = {"importance": "group", "allocation": "global"}, BUDGETS.get(family, bough.Budget(params="60%"))
    result = bough.prune(given.model, given.inputs, budget, uniform=True, refit=False, **options)
    bough.save_pretrained(result, tmp_path / "memory", source=source)
    streamed = bough.prune_checkpoint(source, budget, tmp_path / "streamed", **options)
    one, other = tensors(tmp_path / "memory"), tensors(tmp_path / "streamed")
    assert one.keys() == other.keys()
    assert all(one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one)
    assert streamed.plan.kept == result.plan.kept
    configs = [json.loads((tmp_path / x / "config.json").read_text()) for x in ("memory", "streamed")]
    assert configs[0] == configs[1]
