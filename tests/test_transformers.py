"""Families of transformers, small: a uniform plan's cut loads with stock classes, any other with bough.load; all generate."""

import tempfile
from dataclasses import dataclass

import pytest
import torch

import bough
from bough.tracing.capture.tree import output_tensors
from tests.zoo import randomize, to_double, transformers_models

UNIFORM = {  # family: fields of the config after keep=0.5
    "bert": {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 20},
    "albert": {"embedding_size": 8, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 20},
    "llama_tied": {"hidden_size": 12, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 20},
    "qwen2": {"hidden_size": 12, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 6},
    "gemma2": {"hidden_size": 24, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 20},
    "gpt2": {"n_embd": 12, "n_head": 2, "n_inner": 20},
    "gpt_neox": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20},
    "bloom": {"hidden_size": 12, "n_head": 4},
    "mamba": {"hidden_size": 12, "state_size": 3, "time_step_rank": 2},
    "t5": {"d_model": 24, "d_kv": 4, "d_ff": 20, "num_heads": 2},
    "whisper": {"d_model": 24, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20},
    "vit": {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 20},
    "swin": {"embed_dim": 6, "num_heads": [1, 2]},
    "resnet": {"embedding_size": 3, "hidden_sizes": [4, 8, 8, 12]},
}
FREE = ("falcon_alibi", "llama_tied", "gemma2", "gpt2", "mistral", "bloom", "t5", "bart", "whisper", "bert")


@dataclass(frozen=True)
class Result:
    model: torch.nn.Module
    plan: bough.Plan


def built(family):
    torch.manual_seed(0)
    model, inputs = transformers_models.ZOO[family]()
    return randomize(model.eval()), to_double(inputs)


def planned(model, inputs, **options):
    graph = bough.trace(model, inputs)
    return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), **options)


def saved_and_loaded(small):
    """The stock class's model of what `save_pretrained` writes: in float32, as tables are computed in it."""
    with tempfile.TemporaryDirectory() as folder:
        small.float().save_pretrained(folder)
        again = type(small).from_pretrained(folder, dtype=torch.float32).eval().double()
    return small.double(), again


@torch.no_grad()
def outputs(model, inputs):
    return [t for t in output_tensors(model(**{k: v.clone() for k, v in inputs.items()})).values() if t.is_floating_point()]


def generated(model, inputs, use_cache):
    given = {k: v for k, v in inputs.items() if not k.startswith("decoder_")}
    return model.generate(**given, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache)


def equal(one, other, inputs):
    for a, b in zip(outputs(one, inputs), outputs(other, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    if one.can_generate():
        tokens = generated(one, inputs, use_cache=False)
        assert torch.equal(generated(one, inputs, use_cache=True), tokens)
        assert torch.equal(generated(other, inputs, use_cache=True), tokens)


@pytest.mark.parametrize("family", UNIFORM)
def test_stock_classes_load_what_a_uniform_plan_leaves(family):
    model, inputs = built(family)
    plan = planned(model, inputs, keep=0.5, uniform=True)
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, inputs).equal
    assert {k: getattr(small.config, k) for k in UNIFORM[family]} == UNIFORM[family]
    small, again = saved_and_loaded(small)
    assert again.config.to_json_string() == small.config.to_json_string()
    equal(small, again, inputs)


@pytest.mark.parametrize(("family", "layer", "field"), [
    ("bert", "bert.encoder.layer.0", "num_hidden_layers"),
    ("mistral", "model.layers.0", "num_hidden_layers"),
    ("whisper", "model.decoder.layers.1", "decoder_layers"),
])  # fmt: skip
def test_layers_left_out_are_in_the_config(family, layer, field):
    model, inputs = built(family)
    plan = planned(model, inputs, budget=bough.Budget(params="80%"), drop=[layer], uniform=True)
    small, again = saved_and_loaded(bough.cut(model, plan))
    assert getattr(again.config, field) == 1
    equal(small, again, inputs)


def test_a_layer_that_is_unlike_the_others_can_not_be_told():
    model, inputs = built("t5")
    with pytest.raises(bough.errors.PlanError, match=r"no config found can say that encoder\.block\.0\.layer\.1 is"):
        planned(model, inputs, keep=1.0, drop=["encoder.block.0.layer.1"], uniform=True)


@pytest.mark.parametrize("family", FREE)
def test_any_plan_loads_with_bough_and_generates_with_its_cache(family, tmp_path):
    model, inputs = built(family)
    config = type(model.config).from_dict(model.config.to_dict())
    plan = planned(model, inputs, budget=bough.Budget(params="60%"))
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, inputs).equal
    bough.save(Result(small, plan), tmp_path)
    again = bough.load(tmp_path, lambda: type(model)(config).double())
    equal(small, again, inputs)
    ties = {n for n, p in model.named_parameters(remove_duplicate=False)} - {n for n, p in model.named_parameters()}
    assert {n for n, p in again.named_parameters(remove_duplicate=False)} - {n for n, p in again.named_parameters()} == ties


def test_heads_may_differ_from_layer_to_layer():
    model, inputs = built("llama")
    graph = bough.trace(model, inputs)
    heads = [g.name for g in graph.groups if g.kind == "head"]
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, keep={heads[0]: 1, heads[1]: 3})
    small = bough.cut(model, plan)
    assert [layer.self_attn.k_proj.out_features for layer in small.model.layers] == [6, 18]
    equal(small, small, inputs)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_may_be_an_example_input_and_stays_as_it_was(family, filled):
    model, inputs = built(family)
    cache = transformers_cache(model, inputs) if filled else transformers_cache()
    before = cache.get_seq_length()
    given = {**inputs, "past_key_values": cache}
    given["attention_mask"] = torch.ones(2, before + inputs["input_ids"].shape[1], dtype=torch.long)
    plan = planned(model, given, keep=0.5)
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, given).equal
    assert cache.get_seq_length() == before
    assert any(k < n for k, n in plan.groups.values())
    equal(small, small, inputs)


@torch.no_grad()
def transformers_cache(model=None, inputs=None):
    from transformers import DynamicCache

    return DynamicCache() if model is None else model(**inputs, use_cache=True).past_key_values
