"""Data passed through a checkpoint block by block gives the plan and the tensors of the loaded model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bough
from bough.calibration import as_data
from bough.errors import PlanError
from bough.streaming import architecture, example_inputs
from bough.streaming.names import Names
from bough.streaming.pieces import placed
from bough.streaming.resident import ResidentBlocks
from bough.streaming.shards import read_shards
from bough.streaming.weights import StreamedWeights
from tests.streaming.test_equal_to_memory import folder_of
from tests.test_cli import run
from tests.zoo import transformers_models

BUDGET = bough.Budget(params="60%")


def batches(model, count=3):
    torch.manual_seed(1)
    ids = [torch.randint(0, model.config.vocab_size, (2, 10)) for _ in range(count)]
    return [{"input_ids": x, **({"decoder_input_ids": x} if model.config.is_encoder_decoder else {})} for x in ids]


def blocks_of(folder):
    model = architecture(folder)
    names, shards = Names(model), read_shards(folder)
    graph = bough.trace(model, example_inputs(model))
    return ResidentBlocks(graph, StreamedWeights(shards, placed(names, shards), names))


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gpt2", "t5"])
def test_equal_to_the_loaded_model(family, tmp_path):
    source = folder_of(family, tmp_path / "source")
    model, _ = transformers_models.ZOO[family]()
    model = type(model).from_pretrained(source).eval()
    data = batches(model)
    for criterion in ("wanda", "flap", "activation_mean", "hrank"):
        graph = bough.trace(model, example_inputs(model))
        blocks = blocks_of(source)
        assert len(blocks.stops) > 1
        scores = bough.score(graph, criterion, data)
        found = bough.importance.criterion(criterion)(blocks.graph, blocks.data(as_data(data)))
        for name, values in scores.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=f"{criterion} {name}")
    options = {"importance": "wanda", "allocation": "global", "data": data}
    result = bough.prune(model, example_inputs(model), BUDGET, uniform=True, refit=False, **options)
    bough.save_pretrained(result, tmp_path / "memory", source=source)
    streamed = bough.prune_checkpoint(source, BUDGET, tmp_path / "streamed", **options)
    assert streamed.plan.kept == result.plan.kept
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("memory", "streamed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)
    configs = [json.loads((tmp_path / x / "config.json").read_text()) for x in ("memory", "streamed")]
    assert configs[0] == configs[1]


def test_influence_of_blocks(tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    model = type(transformers_models.ZOO["llama_tied"]()[0]).from_pretrained(source).eval()
    data, blocks = batches(model), blocks_of(source)
    scores = bough.score(bough.trace(model, example_inputs(model)), "block_influence", data)
    found = bough.importance.criterion("block_influence")(blocks.graph, blocks.data(as_data(data)))
    np.testing.assert_allclose(found["model.layers"], scores["model.layers"], rtol=1e-6)


def test_one_block_is_loaded_at_a_time(tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    blocks = blocks_of(source)
    data, loaded = blocks.data(as_data(batches(blocks.graph.model))), []

    def resident():
        return {n for n, p in blocks.graph.model.named_parameters() if p.untyped_storage().nbytes() > p.itemsize}

    for stage in range(len(data.stops) + 1):
        with data.resident(stage):
            loaded.append(resident())
        assert not resident()
    layers = [{n.split(".")[2] for n in names if ".layers." in n} for names in loaded]
    assert all(len(numbers) <= 1 for numbers in layers)
    assert set().union(*loaded) == {n for n, _ in blocks.graph.model.named_parameters()}


def loss(model, batch):
    return model(**batch).logits.square().mean()


REFUSED = {
    "taylor": (bough.importance.Taylor(loss), "runs the whole model, for a loss or gradients"),
    "obs": ("obs(relative=True)", "OBS keeps second moments of all layers at once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_whole_model_is_refused(name, tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    criterion, message = REFUSED[name]
    data = batches(architecture(source))
    with pytest.raises(PlanError, match=message):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out", importance=criterion, data=data)
    with pytest.raises(PlanError, match="needs data: give data=batches"):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out", importance="wanda")
    with pytest.raises(PlanError, match="reads no data"):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out", importance="l2", data=data)
    assert not (tmp_path / "out" / "config.json").exists()


def test_no_batches(tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    with pytest.raises(PlanError, match="the data gives no batches"):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out", importance="wanda", data=[])


def test_command_line(tmp_path):
    source = folder_of("llama_tied", tmp_path / "source")
    words = (
        "prune", f"hf:{source}", "--stream", "--budget", "params=60%", "--importance", "wanda", "--data",
        "tests.streaming.test_data:token_batches", "--out", tmp_path / "out",
    )  # fmt: skip
    run(*map(str, words))
    bough.prune_checkpoint(source, BUDGET, tmp_path / "api", importance="wanda", data=token_batches())
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("out", "api"))
    assert all(torch.equal(one[n], other[n]) for n in one)


def token_batches():
    torch.manual_seed(0)
    return [{"input_ids": torch.randint(0, 50, (2, 8))} for _ in range(2)]
