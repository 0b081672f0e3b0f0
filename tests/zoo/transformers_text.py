"""Tiny transformers of text with random weights: name -> () -> (model, keyword arguments).

Widths differ from one another, so that axes that are mixed up show: 24 hidden, 40 inner, 6 wide heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.shim import declare_torchvision_ops

Built = tuple[nn.Module, dict[str, Any]]
Builder = Callable[[], Built]
VOCABULARY, TOKENS = 99, 9
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}  # 4 query heads share 2 key-value heads
HEADS = {**GROUPED, "head_dim": 8}  # together wider than the hidden state
EXPERTS = {**GROUPED, "head_dim": 6, "moe_intermediate_size": 20, "num_experts_per_tok": 2}
GPT = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "n_inner": 40, **SPECIAL}
SIDES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 40}.items()
}
PAIR = {**SIDES, "d_model": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "decoder_start_token_id": 2, **SPECIAL}


def built(family: str, task: str, **config: Any) -> nn.Module:
    """`AutoModelFor{task}` of the family's config, in eval mode."""
    declare_torchvision_ops()
    import transformers as hf

    auto = getattr(hf, f"AutoModelFor{task}" if task else "AutoModel")
    return auto.from_config(hf.CONFIG_MAPPING[family](**config)).eval()


def ids(tokens: int = TOKENS) -> Tensor:
    """Two sentences of real tokens: the special ones (padding, begin, end) are all below 3."""
    return torch.randint(3, VOCABULARY, (2, tokens))


def sentences(tokens: int = TOKENS) -> dict[str, Tensor]:
    read = ids(tokens)
    return {"input_ids": read, "attention_mask": torch.ones_like(read)}


def _classifier(family: str, tokens: int = TOKENS, **config: Any) -> Builder:
    return lambda: (built(family, "SequenceClassification", num_labels=3, **config), sentences(tokens))


def _causal(family: str, **config: Any) -> Builder:
    return lambda: (built(family, "CausalLM", **config), sentences())


def _pair(family: str, **config: Any) -> Builder:
    return lambda: (built(family, "Seq2SeqLM", **config), {**sentences(), "decoder_input_ids": ids(5)})


def layoutlm() -> Built:
    boxes = torch.randint(0, 40, (2, TOKENS, 2))
    model = built("layoutlm", "SequenceClassification", max_2d_position_embeddings=64, **TEXT)
    return model, {**sentences(), "bbox": torch.cat((boxes, boxes + 10), -1)}


def canine() -> Built:
    config = {k: v for k, v in TEXT.items() if k not in ("vocab_size", "bos_token_id", "eos_token_id")}
    small = {"local_transformer_stride": 16, "num_hash_buckets": 64, "bos_token_id": 1, "eos_token_id": 2}
    return built("canine", "SequenceClassification", **config, **small), sentences(32)


def reformer() -> Built:
    config = {
        "hidden_size": 24, "feed_forward_size": 40, "num_attention_heads": 4, "attention_head_size": 8, "is_decoder": True,
        "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 8], "axial_pos_embds_dim": [8, 16], "hash_seed": 0,
        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 4, "max_position_embeddings": 32,
        "vocab_size": VOCABULARY, **SPECIAL,
    }  # fmt: skip
    return built("reformer", "CausalLM", **config), sentences(32)


DISTIL = {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16, "position_buckets": 8}
MODERN = {
    **TEXT,
    "local_attention": 4,
    "layer_types": ["full_attention", "sliding_attention"],
    "cls_token_id": 1,
    "sep_token_id": 2,
}
SQUEEZE = {f"{k}_groups": 2 for k in ("q", "k", "v", "intermediate", "output")}
FUNNEL = {"block_sizes": [1, 1], "d_model": 24, "n_head": 4, "d_head": 6, "d_inner": 40, "num_decoder_layers": 1}
MAMBA = {"hidden_size": 24, "state_size": 6, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "expand": 2, **SPECIAL}
LATENT = {
    **TEXT, "moe_intermediate_size": 20, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1, "kv_lora_rank": 10, "q_lora_rank": 14,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
FALCON = {**{k: v for k, v in TEXT.items() if k not in ("intermediate_size", "max_position_embeddings")}, "ffn_hidden_size": 40}
MPT = {"d_model": 24, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64, "vocab_size": VOCABULARY, **SPECIAL}
T5 = {
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "decoder_start_token_id": 0,
}

ENCODERS: dict[str, Builder] = {
    "bert": _classifier("bert", **TEXT),
    "roberta": _classifier("roberta", **TEXT),
    "xlm_roberta": _classifier("xlm-roberta", **TEXT),
    "electra": _classifier("electra", embedding_size=16, **TEXT),
    "albert": _classifier("albert", embedding_size=16, **TEXT),
    "distilbert": _classifier("distilbert", pad_token_id=0, **DISTIL),
    "deberta_v2": _classifier("deberta-v2", **TEXT, **DEBERTA),
    "modernbert": _classifier("modernbert", **MODERN),
    "layoutlm": layoutlm,
    "squeezebert": _classifier("squeezebert", embedding_size=24, **SQUEEZE, **TEXT),
    "mobilebert": _classifier("mobilebert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, **TEXT),
    "xlnet": _classifier("xlnet", d_model=24, n_layer=2, n_head=4, d_head=6, d_inner=40, vocab_size=VOCABULARY, **SPECIAL),
    "longformer": _classifier("longformer", 8, attention_window=4, sep_token_id=2, **TEXT),
    "big_bird": _classifier("big_bird", 16, attention_type="original_full", sep_token_id=2, **TEXT),
    "funnel": _classifier("funnel", 8, vocab_size=VOCABULARY, **FUNNEL),
    "roformer": _classifier("roformer", embedding_size=16, **TEXT),
    "nystromformer": _classifier("nystromformer", 8, num_landmarks=4, segment_means_seq_len=8, conv_kernel_size=3, **TEXT),
    "fnet": _classifier("fnet", **{k: v for k, v in TEXT.items() if k != "num_attention_heads"}),
    "canine": canine,
    "data2vec_text": _classifier("data2vec-text", **TEXT),
}
DECODERS: dict[str, Builder] = {
    "llama": _causal("llama", **TEXT),
    "llama_gqa": _causal("llama", **GROUPED),
    "llama_tied": _causal("llama", tie_word_embeddings=True, **GROUPED),
    "mistral": _causal("mistral", sliding_window=4, **GROUPED),
    "qwen2": _causal("qwen2", **GROUPED),
    "qwen3": _causal("qwen3", **HEADS),
    "qwen3_moe": _causal("qwen3_moe", num_experts=4, **EXPERTS),
    "qwen3_moe_loop": _causal("qwen3_moe", num_experts=4, experts_implementation="eager", **EXPERTS),
    "mixtral": _causal("mixtral", num_local_experts=4, num_experts_per_tok=2, **GROUPED),
    "gemma": _causal("gemma", **HEADS),
    "gemma2": _causal("gemma2", sliding_window=4, query_pre_attn_scalar=8, **HEADS),
    "gemma3": _causal("gemma3_text", sliding_window=4, layer_types=["sliding_attention", "full_attention"], **HEADS),
    "phi": _causal("phi", **{**TEXT, "hidden_size": 32}),
    "phi3": _causal("phi3", **GROUPED),
    "olmo2": _causal("olmo2", **GROUPED),
    "granite": _causal("granite", **GROUPED),
    "stablelm": _causal("stablelm", **{**GROUPED, "hidden_size": 32}),
    "starcoder2": _causal("starcoder2", **GROUPED),
    "cohere": _causal("cohere", **GROUPED),
    "deepseek_v3": _causal("deepseek_v3", **LATENT),
    "gpt2": _causal("gpt2", **GPT),
    "gpt_neo": _causal(
        "gpt_neo", hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, window_size=4, vocab_size=VOCABULARY,
        max_position_embeddings=64, attention_types=[[["global", "local"], 1]], **SPECIAL,
    ),
    "gpt_neox": _causal("gpt_neox", **{**TEXT, "hidden_size": 32}),
    "gptj": _causal("gptj", rotary_dim=4, **GPT),
    "opt": _causal(
        "opt", hidden_size=24, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
        max_position_embeddings=64, word_embed_proj_dim=16, **SPECIAL,
    ),
    "bloom": _causal("bloom", hidden_size=24, n_layer=2, n_head=4, vocab_size=VOCABULARY, **SPECIAL),
    "falcon": _causal("falcon", **FALCON),
    "falcon_alibi": _causal("falcon", alibi=True, new_decoder_architecture=True, num_kv_heads=2, **FALCON),
    "mpt": _causal("mpt", **MPT),
    "mamba": _causal("mamba", time_step_rank=3, **MAMBA),
    "mamba2": _causal("mamba2", num_heads=6, head_dim=8, n_groups=2, chunk_size=4, **MAMBA),
    "reformer": reformer,
}  # fmt: skip
PAIRS: dict[str, Builder] = {
    "t5": _pair("t5", **T5),
    "t5_gated": _pair("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
    "bart": _pair("bart", **PAIR),
    "marian": _pair("marian", **PAIR),
    "pegasus": _pair("pegasus", **PAIR),
}
ZOO: dict[str, Builder] = {**ENCODERS, **DECODERS, **PAIRS}
