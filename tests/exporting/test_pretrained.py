"""Cut models of transformers as folders: by the command line alone, stock classes load and run them in a fresh process."""

import copy
import json
import subprocess
import sys

import pytest
import torch

import bough
from bough.cli.models import resolve
from bough.errors import CheckpointError, PlanError
from tests.test_cli import run
from tests.zoo import randomize, transformers_models
from tests.zoo.transformers_text import built

FAMILIES = ("llama_gqa", "qwen2", "qwen3_moe", "mistral", "gemma2", "gpt2", "bert", "t5")
FRESH_PROCESS = """
import json, sys, torch
from tests.zoo.shim import declare_torchvision_ops
declare_torchvision_ops()
import transformers
found = {}
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model, told = getattr(transformers, config.architectures[0]).from_pretrained(folder, output_loading_info=True)
    model.eval()
    ids = torch.tensor([[3, 7, 11, 5], [4, 9, 8, 30]])
    if model.can_generate():
        given = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
        result = [model.generate(ids, use_cache=cached, **given).tolist() for cached in (True, False)]
    else:
        with torch.no_grad():
            result = model(ids).logits.tolist()
    found[folder] = [result, sorted(told["missing_keys"]), sorted(told["unexpected_keys"])]
print(json.dumps(found))
"""


def folder_of(family, tmp_path):
    """A folder as users have one: weights, configs, and a file that stands for the tokenizer."""
    torch.manual_seed(0)
    model, _ = transformers_models.ZOO[family]()
    folder = tmp_path / family
    randomize(model).float().save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"stands for": "the tokenizer"}')
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    return folder


@pytest.fixture(scope="module")
def pruned_folders(tmp_path_factory):
    """{family: (folder of the original, folder that `bough prune` wrote)}, and what a fresh process says of the latter."""
    root = tmp_path_factory.mktemp("folders")
    folders = {}
    for family in FAMILIES:
        source, out = folder_of(family, root), root / f"{family}-small"
        run(
            "prune", f"hf:{source}", "--budget", "params=70%", "--importance", "l2", "--no-refit", "--uniform", "--json",
            "--out", str(out),
        )  # fmt: skip
        folders[family] = source, out
    command = [sys.executable, "-c", FRESH_PROCESS, *(str(out) for _, out in folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folders, json.loads(done.stdout)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_process_loads_what_the_command_line_wrote(family, pruned_folders):
    folders, by_folder = pruned_folders
    source, out = folders[family]
    result, missing, unexpected = by_folder[str(out)]
    assert not missing
    assert not unexpected
    original = resolve(f"hf:{source}")
    small = bough.load(out, lambda: original.model).eval()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in resolve(f"hf:{source}").model.parameters())
    ids = torch.tensor([[3, 7, 11, 5], [4, 9, 8, 30]])
    if small.can_generate():
        given = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        assert result == [small.generate(ids, use_cache=cached, **given).tolist() for cached in (True, False)]
    else:
        torch.testing.assert_close(torch.tensor(result), small(ids).logits)
    names = {path.name for path in out.iterdir()}
    assert {"plan.json", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "pytorch_model.bin" not in names
    assert ("generation_config.json" in names) == small.can_generate()


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return built("llama", "CausalLM", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                 vocab_size=50)  # fmt: skip


def planned(model, **options):
    graph = bough.trace(model, {"input_ids": torch.randint(3, 50, (1, 5))})
    return bough.plan(graph, bough.score(graph, "l2"), **options)


def test_a_plan_that_no_config_expresses_is_refused(llama, tmp_path):
    plan = planned(llama, keep={"model.layers.0.mlp.*": 12})
    small = bough.cut(llama, plan)
    with pytest.raises(PlanError, match=r"the config can not express it .*down_proj.*uniform=True, or keep .* bough\.save"):
        bough.save_pretrained(small, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_models_of_transformers_have_such_folders(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="60%"), importance="l2", refit=False)
    with pytest.raises(CheckpointError, match=r"Sequential is no model of transformers .*: use bough\.save"):
        bough.save_pretrained(result, tmp_path)


def test_the_command_line_says_where_from_pretrained_can_not_load(llama, tmp_path):
    llama.save_pretrained(tmp_path / "source")
    words = ("prune", f"hf:{tmp_path / 'source'}", "--budget", "params=80%", "--importance", "l2", "--no-refit", "--overwrite")
    out = tmp_path / "out"
    assert "which from_pretrained and bough load" in run(*words, "--uniform", "--out", str(out))
    assert (out / "config.json").exists()
    only = ("--only", "model.layers.0.mlp*")
    printed = run("prune", f"hf:{tmp_path / 'source'}", "--budget", "params=95%", "--importance", "l2", "--no-refit", *only,
               "--overwrite", "--out", str(out))  # fmt: skip
    assert "with --uniform it can" in printed
    names = ["model.safetensors", "per_layer_config.json", "plan.json"]  # nothing of the other plan is left
    assert sorted(p.name for p in out.iterdir()) == names


def test_a_folder_is_checked_when_it_is_loaded_and_not_replaced_unasked(llama, tmp_path):
    plan = planned(llama, keep=0.5, uniform=True)
    small, out = bough.cut(llama, plan), tmp_path / "out"
    llama.save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError, match="is the folder of the original"):
        bough.save_pretrained(small, plan, tmp_path / "source", source=tmp_path / "source")
    bough.save_pretrained(small, plan, out, source=tmp_path / "source")
    with pytest.raises(CheckpointError, match="has a checkpoint already"):
        bough.save_pretrained(small, plan, out)
    again = bough.load(out, lambda: copy.deepcopy(llama))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), small.state_dict().values(), strict=True))
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1"[-1:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        bough.load(out, lambda: copy.deepcopy(llama))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        bough.load(out, lambda: copy.deepcopy(llama))
