"""The models of the overhead benchmark: name -> () -> (model, example inputs), random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops


class ResidualMLP(nn.Module):
    """`blocks` residual blocks of two layers, 64 wide."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 64), nn.Linear(64, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _vision(name: str) -> tuple[nn.Module, Any]:
    declare_torchvision_ops()
    import torchvision

    return torchvision.models.get_model(name, weights=None), torch.randn(1, 3, 224, 224)


def _bert() -> tuple[nn.Module, Any]:
    declare_torchvision_ops()
    import transformers

    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    return model, {"input_ids": torch.randint(0, 1000, (1, 128))}


def _llama(dtype: torch.dtype, tokens: int, **config: int) -> tuple[nn.Module, Any]:
    declare_torchvision_ops()
    import transformers

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    finally:
        torch.set_default_dtype(before)
    return model, {"input_ids": torch.randint(0, config["vocab_size"], (1, tokens))}


def _large_llama() -> tuple[nn.Module, Any]:
    return _llama(
        torch.bfloat16, 32, hidden_size=2048, num_hidden_layers=16, intermediate_size=5632, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000,
    )  # fmt: skip


def _gqa_llama() -> tuple[nn.Module, Any]:
    return _llama(
        torch.float32, 16, hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100,
    )  # fmt: skip


def _mlp(blocks: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (ResidualMLP(blocks), torch.randn(1, 16))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet50": lambda: _vision("resnet50"),
    "densenet121": lambda: _vision("densenet121"),
    "vit_b_16": lambda: _vision("vit_b_16"),
    "bert_base": _bert,
    "llama_0.95b_bf16": _large_llama,
    "llama_gqa_1_layer": _gqa_llama,
    **{f"residual_mlp_{n}": _mlp(n) for n in (40, 80, 160, 320)},
}
