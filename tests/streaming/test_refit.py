"""Refit of a checkpoint block by block gives the weights that refit of the loaded model gives."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

import bough
from bough.errors import CheckpointError, PlanError
from bough.streaming import example_inputs, refit, run_folder
from bough.streaming.resident import ResidentBlocks
from tests.streaming.test_data import batches, token_batches
from tests.streaming.test_equal_to_memory import folder_of, tensors
from tests.streaming.test_resuming import Killed, content, ending
from tests.test_cli import run
from tests.zoo import transformers_models

BUDGET = bough.Budget(params="60%")
OPTIONS = {"importance": "l2", "allocation": "global", "refit": True}


def loaded(family, folder):
    return type(transformers_models.ZOO[family]()[0]).from_pretrained(folder).eval()


CASES = {
    "llama_tied": {}, "gpt2": {}, "t5": {}, "qwen3_moe": {},
    "llama_gqa": {"drop": ["model.layers.1"]},
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_equal_to_the_loaded_model(family, tmp_path):
    source = folder_of(family, tmp_path / "source")
    model = loaded(family, source)
    options = {**OPTIONS, **CASES[family], "data": batches(model)}
    result = bough.prune(model, example_inputs(model), BUDGET, uniform=True, **options)
    bough.save_pretrained(result, tmp_path / "memory", source=source)
    streamed = bough.prune_checkpoint(source, BUDGET, tmp_path / "streamed", **options)
    one, other = tensors(tmp_path / "memory"), tensors(tmp_path / "streamed")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert [x.name for x in streamed.refit.layers] == [x.name for x in result.refit.layers]
    assert streamed.refit.skipped == result.refit.skipped
    cut = bough.prune_checkpoint(source, BUDGET, tmp_path / "cut", **{**options, "refit": False, "data": None})
    assert cut.plan.kept == streamed.plan.kept
    before = tensors(tmp_path / "cut")
    assert {n for n in one if not torch.equal(one[n], before[n])}  # something was solved


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folder_of("llama_gqa", tmp_path_factory.mktemp("source") / "llama", torch.bfloat16, max_shard_size="8KB")


@pytest.fixture(scope="module")
def data(source):
    return batches(loaded("llama_gqa", source))


@pytest.fixture(scope="module")
def whole(source, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    bough.prune_checkpoint(source, BUDGET, out, data=data, **OPTIONS)
    return content(out)


PLACES = [
    (refit.RefittedFiles, "write", 1), (refit.RefittedFiles, "write", 2), (refit.RefittedFiles, "end", 1),
    (run_folder, "write_cut_file", 2), (run_folder.RunFolder, "finish", 1),
]  # fmt: skip


@pytest.mark.parametrize(("holder", "name", "number"), PLACES, ids=[f"{n}{k}" for _, n, k in PLACES])
def test_a_run_that_ends_early_is_continued(holder, name, number, source, data, whole, tmp_path, monkeypatch):
    out, solved = tmp_path / "out", 1 << 10
    with monkeypatch.context() as patched:
        ending(patched, holder, name, number)
        with pytest.raises(Killed):
            bough.prune_checkpoint(source, BUDGET, out, data=data, **OPTIONS)
    assert not (out / "config.json").exists()
    with monkeypatch.context() as patched:
        calls = ending(patched, refit.LayerwiseRefit, "solve_block", solved)
        assert bough.prune_checkpoint(source, BUDGET, out, data=data, **OPTIONS).resumed
    blocks = 3  # the embedding has no weight that is solved; two layers, and the head
    assert calls == [blocks + 1 - (number - 1) if name == "write" else 0]
    assert content(out) == whole


def test_one_block_of_each_model_is_loaded_at_a_time(source, data, tmp_path, monkeypatch):
    real, loaded_layers = ResidentBlocks.resident, []

    def resident(self, stage):
        with real(self, stage):
            named = self.graph.model.named_parameters()
            numbers = {n.split(".")[2] for n, p in named if ".layers." in n and p.untyped_storage().nbytes() > p.itemsize}
            loaded_layers.append((self.graph.model.config.hidden_size, numbers))
            yield

    monkeypatch.setattr(ResidentBlocks, "resident", contextmanager(resident))
    result = bough.prune_checkpoint(source, BUDGET, tmp_path / "out", data=data, **OPTIONS)
    assert max(len(numbers) for _, numbers in loaded_layers) == 1
    assert len({width for width, _ in loaded_layers}) == 2  # of both models
    assert {x.name.split(".")[2] for x in result.refit.layers if ".layers." in x.name} == {"0", "1"}


def test_refused(source, data, tmp_path):
    def prune(folder=source, **options):
        bough.prune_checkpoint(folder, BUDGET, tmp_path / "out", **{**OPTIONS, **options})
        pytest.fail("not refused")

    with pytest.raises(PlanError, match="needs data"):
        prune()
    with pytest.raises(PlanError, match="gone through once only"):
        prune(data=iter(data))
    with pytest.raises(PlanError, match="more than 256 batches"):
        prune(data=[data[0]] * 257)
    other = folder_of("llama_gqa", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    with pytest.raises(CheckpointError, match=r"stored as torch.float32, and config.json says torch.bfloat16"):
        prune(other, data=data)


def test_command_line(tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    words = (
        "prune", f"hf:{source}", "--stream", "--budget", "params=60%", "--importance", "wanda", "--refit", "--data",
        "tests.streaming.test_data:token_batches", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    printed = json.loads(run(*map(str, words)))
    result = bough.prune_checkpoint(source, BUDGET, tmp_path / "api", importance="wanda", refit=True, data=token_batches())
    assert printed["refit"] == json.loads(json.dumps(result.refit.to_dict()))
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("out", "api"))
    assert all(torch.equal(one[n], other[n]) for n in one)
