"""Tiny transformers with random weights and their heads: name -> () -> (model, keyword arguments)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops

declare_torchvision_ops()
import transformers as hf  # noqa: E402

Built = tuple[nn.Module, dict[str, torch.Tensor]]
VOCABULARY, TOKENS = 100, 9
WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {**WIDTHS, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
GROUPED = {**TEXT, "num_key_value_heads": 2}  # 4 query heads share 2 key-value heads


def _text() -> dict[str, torch.Tensor]:
    """Two sentences of real tokens: the special ones (padding, begin, end) are all below 3."""
    ids = torch.randint(3, VOCABULARY, (2, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pair() -> dict[str, torch.Tensor]:
    return {**_text(), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 5))}


def bert() -> Built:
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT)).eval(), _text()


def roberta() -> Built:
    return hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT)).eval(), _text()


def vit() -> Built:
    config = hf.ViTConfig(**WIDTHS, image_size=32, patch_size=8, num_labels=5)
    return hf.ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}


def gpt2() -> Built:
    config = hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config).eval(), _text()


def llama() -> Built:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)).eval(), _text()


def qwen2() -> Built:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)).eval(), _text()


def mistral() -> Built:
    return hf.MistralForCausalLM(hf.MistralConfig(**GROUPED)).eval(), _text()


def t5() -> Built:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return hf.T5ForConditionalGeneration(config).eval(), _pair()


def bart() -> Built:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()
    }
    config = hf.BartConfig(d_model=32, vocab_size=VOCABULARY, max_position_embeddings=64, **sides)
    return hf.BartForConditionalGeneration(config).eval(), _pair()


ZOO: dict[str, Callable[[], Built]] = {f.__name__: f for f in (bert, roberta, vit, gpt2, llama, qwen2, mistral, t5, bart)}
