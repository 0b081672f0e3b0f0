"""The fields in which layers of a saved model differ, read by transformers itself and by its own layers."""

import copy
import json

import pytest
import torch

import bough
from bough.planning import per_layer_config
from tests.zoo import transformers_models

NAME = "per_layer_config.json"
CASES = {
    "llama_gqa": {"*.0.mlp.gate_proj": 13, "*.1.self_attn.q_proj/head": 1},
    "gemma2": {"*.1.mlp.gate_proj": 7},
    "mixtral": {"*.0.mlp.experts": 9, "*.1.mlp.gate/expert": 3},
}


def cut(family, keep):
    torch.manual_seed(0)
    model, inputs = transformers_models.ZOO[family]()
    graph = bough.trace(model.eval(), inputs)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=keep)
    return bough.cut(model, plan), plan


@pytest.mark.parametrize("family", CASES)
def test_the_layers_of_transformers_take_the_weights(family, tmp_path):
    model, plan = cut(family, CASES[family])
    bough.save(model, plan, tmp_path)
    saved = json.loads((tmp_path / NAME).read_text())
    again = copy.deepcopy(model.config)
    again.per_layer_config = saved
    assert again.to_dict()["per_layer_config"] == saved
    again._attn_implementation = "eager"
    for i, layer in enumerate(model.model.layers):
        type(layer)(again.per_layer_config[i], i).load_state_dict(layer.state_dict(), strict=True)


def test_what_can_not_be_expressed(tmp_path):
    model, plan = cut("llama_gqa", {"*.0.mlp.gate_proj": 13})
    bough.save(model, plan, tmp_path)
    assert (tmp_path / NAME).exists()
    narrow = cut("llama_gqa", {"*.self_attn.o_proj": 20})  # the hidden state of all layers
    assert per_layer_config(narrow[0]) is None
    bough.save(*narrow, tmp_path, overwrite=True)
    assert not (tmp_path / NAME).exists()
    assert per_layer_config(torch.nn.Linear(2, 2)) is None


def test_an_uncut_model_has_no_file(tmp_path):
    model, plan = cut("llama_gqa", {"*.mlp.gate_proj": 1.0})
    assert per_layer_config(model) == {}
    bough.save(model, plan, tmp_path)
    assert not (tmp_path / NAME).exists()
