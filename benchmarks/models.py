"""The models of the overhead benchmark with random weights, and the hints Torch-Pruning's own examples give for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops

RESIDUAL = (40, 80, 160, 320)
MODELS = (
    "resnet50", "densenet121", "vit_b_16", "bert_base", "llama_0.95b", "llama_gqa", "llama_48_layers",
    *(f"residual_{n}" for n in RESIDUAL),
)  # fmt: skip


def build(name: str, seed: int) -> tuple[nn.Module, Any]:
    """The model in eval mode with random weights, and its example inputs."""
    torch.manual_seed(seed)
    if name == "tiny":
        return residual_mlp(1).eval(), torch.randn(1, 16)
    if name.startswith("residual_"):
        return residual_mlp(int(name.removeprefix("residual_"))).eval(), torch.randn(1, 16)
    declare_torchvision_ops()
    if name in ("resnet50", "densenet121", "vit_b_16"):
        from torchvision import models

        return models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
    import transformers as hf

    if name == "bert_base":
        model, tokens = hf.BertForSequenceClassification(hf.BertConfig()), 128
    elif name == "llama_0.95b":
        widths = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 32}
        torch.set_default_dtype(torch.bfloat16)
        model, tokens = hf.LlamaForCausalLM(hf.LlamaConfig(**widths, num_hidden_layers=16, vocab_size=32000)), 32
        torch.set_default_dtype(torch.float32)
    elif name == "llama_gqa":
        widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        model, tokens = hf.LlamaForCausalLM(hf.LlamaConfig(**widths, num_hidden_layers=1, vocab_size=100)), 8
    elif name == "llama_48_layers":
        widths = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
        model, tokens = hf.LlamaForCausalLM(hf.LlamaConfig(**widths, num_hidden_layers=48, vocab_size=1000)), 16
    else:
        raise SystemExit(f"no model {name}; there are {', '.join(MODELS)}")
    ids = torch.randint(3, 100, (1, tokens))
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def residual_mlp(blocks: int, width: int = 64) -> nn.Module:
    """x + Linear(ReLU(Linear(x))), many times over."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(16, width), nn.Linear(width, 8)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    return Residual()


def documented(name: str, model: Any) -> dict[str, Any]:
    """What Torch-Pruning's own examples hand over for such a model."""
    if name.startswith("llama"):
        config = model.config
        config.use_cache = False  # its tracing stops at caches
        heads = {}
        for layer in model.model.layers:
            heads[layer.self_attn.q_proj] = config.num_attention_heads
            heads[layer.self_attn.k_proj] = heads[layer.self_attn.v_proj] = config.num_key_value_heads
        return {
            "ignored_layers": [model.lm_head],
            "num_heads": heads,
            "prune_num_heads": True,
            "prune_head_dims": False,
            "head_pruning_ratio": 0.5,
            "output_transform": lambda out: out.logits,
        }
    if name == "bert_base":
        attentions = [layer.attention.self for layer in model.bert.encoder.layer]
        heads = {m: model.config.num_attention_heads for a in attentions for m in (a.query, a.key, a.value)}
        return {"ignored_layers": [model.classifier], "num_heads": heads, "output_transform": lambda out: out.logits}
    if name == "vit_b_16":
        heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
        return {"ignored_layers": [model.heads.head], "num_heads": heads}
    head = {"resnet50": "fc", "densenet121": "classifier"}.get(name, "head")
    return {"ignored_layers": [getattr(model, head)]}
