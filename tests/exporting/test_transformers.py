"""A language model with a cache of transformers' own class."""

import pytest
import torch

import bough
from tests.zoo.shim import declare_torchvision_ops

pytest.importorskip("onnxscript", reason="export to ONNX needs onnxscript: pip install -e .[onnx]")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install -e .[hf]")


def test_a_step_with_a_cache_whose_length_varies(tmp_path):
    declare_torchvision_ops()  # transformers imports torchvision
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()

    def step(length):
        with torch.no_grad():
            cache = model(torch.randint(0, 31, (2, length)), use_cache=True).past_key_values
        return {"input_ids": torch.randint(0, 31, (2, 1)), "past_key_values": cache, "use_cache": True}

    names = [f"past_key_values.layers.{i}.{part}" for i in range(2) for part in ("keys", "values")]
    lengths = {name: {2: "length"} for name in names}
    made = bough.export(model, step(5), tmp_path / "step.onnx", dynamic_shapes=lengths, more_inputs=[step(9)])
    assert list(made.inputs) == ["input_ids", *names]
    assert made.inputs[names[0]] == [2, 2, "length", 6]
    assert list(made.outputs) == ["logits", *(f"{name}_out" for name in names)]
    assert made.error <= 1e-5
