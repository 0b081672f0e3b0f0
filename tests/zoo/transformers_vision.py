"""Tiny transformers of images, video and sound with random weights: name -> () -> (model, keyword arguments)."""

from typing import Any

import torch
from torch import Tensor

from tests.zoo.shim import declare_torchvision_ops
from tests.zoo.transformers_text import SIDES, SPECIAL, TEXT, VOCABULARY, Builder, Built, built, ids, sentences

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}
RESIDUAL = {**STAGES, "embedding_size": 6}
PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
WAVES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 19,
    "conv_dim": (8, 12), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0, "mask_time_prob": 0.0, **SPECIAL,
}  # fmt: skip
DETECTOR = {**SIDES, "d_model": 24, "num_queries": 5, "use_timm_backbone": False, "backbone": None}


def pixels(side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def _image(family: str, side: int = 32, task: str = "ImageClassification", **config: Any) -> Builder:
    return lambda: (built(family, task, num_labels=3, **config), pixels(side))


def _sound(family: str, **config: Any) -> Builder:
    return lambda: (built(family, "CTC", **{**WAVES, **config}), {"input_values": torch.randn(2, 400)})


def _detector(family: str) -> Builder:
    def build() -> Built:
        declare_torchvision_ops()
        import transformers as hf

        backbone = hf.ResNetConfig(**RESIDUAL, out_features=["stage4"])
        return built(family, "ObjectDetection", backbone_config=backbone, **DETECTOR), pixels(64)

    return build


def _two_towers(family: str, **config: Any) -> Builder:
    """Text and image, each embedded, and their similarities."""
    text = {**TEXT, "projection_size": 32} if family == "siglip" else TEXT
    vision = {**VISION, "hidden_size": 32, "intermediate_size": 36}
    return lambda: (built(family, "", text_config=text, vision_config=vision, **config), {**sentences(), **pixels()})


def deit() -> Built:
    declare_torchvision_ops()
    import transformers as hf

    return hf.DeiTForImageClassification(hf.DeiTConfig(num_labels=3, **VISION)).eval(), pixels()


def blip() -> Built:
    """Image and question to features of both (its decoder of answers is another model)."""
    text = {**TEXT, "encoder_hidden_size": 32, "projection_dim": 16}
    vision = {**VISION, "hidden_size": 32, "intermediate_size": 36, "projection_dim": 16}
    declare_torchvision_ops()
    import transformers as hf

    config = hf.BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    return hf.BlipForImageTextRetrieval(config).eval(), {**sentences(), **pixels()}


def vilt() -> Built:
    declare_torchvision_ops()
    import transformers as hf

    config = hf.ViltConfig(**{k: v for k, v in TEXT.items() if k not in SPECIAL}, image_size=32, patch_size=8, num_labels=3)
    mask = torch.ones(2, 32, 32, dtype=torch.long)
    return hf.ViltForQuestionAnswering(config).eval(), {**sentences(), **pixels(), "pixel_mask": mask}


def videomae() -> Built:
    model = built("videomae", "VideoClassification", num_frames=4, tubelet_size=2, num_labels=3, **VISION)
    return model, {"pixel_values": torch.randn(2, 4, 3, 32, 32)}


def whisper() -> Built:
    config = {
        "d_model": 24,
        "num_mel_bins": 8,
        "max_source_positions": 32,
        "max_target_positions": 32,
        "vocab_size": VOCABULARY,
    }
    start = {"decoder_start_token_id": 2, "suppress_tokens": None, "begin_suppress_tokens": None}
    model = built("whisper", "SpeechSeq2Seq", **SIDES, **config, **start, **SPECIAL)
    return model, {"input_features": torch.randn(2, 8, 64), "decoder_input_ids": ids(5)}


def moonshine() -> Built:
    sides = {
        f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in {"num_hidden_layers": 2, "num_attention_heads": 4}.items()
    }
    config = {"hidden_size": 32, "intermediate_size": 40, "vocab_size": VOCABULARY, "decoder_start_token_id": 1, **SPECIAL}
    return built("moonshine", "SpeechSeq2Seq", **sides, **config), {
        "input_values": torch.randn(2, 2000), "decoder_input_ids": ids(5),
    }  # fmt: skip


def speecht5() -> Built:
    waves = {k: v for k, v in WAVES.items() if k not in ("num_hidden_layers", "num_attention_heads", "intermediate_size")}
    config = {**waves, **SIDES, "vocab_size": VOCABULARY, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    return built("speecht5", "SpeechSeq2Seq", **config), {"input_values": torch.randn(2, 400), "decoder_input_ids": ids(5)}


def mobilevit() -> Built:
    config = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 56], "num_attention_heads": 4}
    return built("mobilevit", "ImageClassification", image_size=64, patch_size=2, num_labels=3, **config), pixels(64)


IMAGES: dict[str, Builder] = {
    "vit": _image("vit", **VISION),
    "deit": deit,
    "dinov2": _image("dinov2", **{k: v for k, v in VISION.items() if k != "intermediate_size"}),
    "dinov2_gated": _image("dinov2", use_swiglu_ffn=True, **{k: v for k, v in VISION.items() if k != "intermediate_size"}),
    "beit": _image("beit", use_relative_position_bias=True, **VISION),
    "data2vec_vision": _image("data2vec-vision", use_shared_relative_position_bias=True, **VISION),
    "swin": _image("swin", **WINDOWS),
    "swinv2": _image("swinv2", **WINDOWS),
    "convnext": _image("convnext", 64, **STAGES),
    "convnextv2": _image("convnextv2", 64, **STAGES),
    "resnet": _image("resnet", 64, layer_type="bottleneck", **RESIDUAL),
    "regnet": _image("regnet", 64, groups_width=4, **RESIDUAL),
    "mobilevit": mobilevit,
    "mobilenet_v2": _image("mobilenet_v2", 64, image_size=64, depth_multiplier=0.5),
    "segformer": _image("segformer", 64, "SemanticSegmentation", sr_ratios=[4, 2, 1, 1], decoder_hidden_size=20, **PYRAMID),
    "pvt": _image("pvt", 64, image_size=64, sequence_reduction_ratios=[4, 2, 1, 1], **PYRAMID),
    "pvt_v2": _image("pvt_v2", 64, image_size=64, sr_ratios=[4, 2, 1, 1], mlp_ratios=[2, 2, 2, 2], **PYRAMID),
    "poolformer": _image("poolformer", 64, **STAGES),
    "detr": _detector("detr"),
    "conditional_detr": _detector("conditional_detr"),
    "videomae": videomae,
}
MIXED: dict[str, Builder] = {
    "clip": _two_towers("clip", projection_dim=16),
    "siglip": _two_towers("siglip"),
    "blip": blip,
    "vilt": vilt,
}
SOUND: dict[str, Builder] = {
    "whisper": whisper,
    "moonshine": moonshine,
    "speecht5": speecht5,
    "wav2vec2": _sound("wav2vec2"),
    "wav2vec2_stable": _sound("wav2vec2", do_stable_layer_norm=True, feat_extract_norm="layer"),
    "hubert": _sound("hubert"),
    "unispeech": _sound("unispeech"),
    "data2vec_audio": _sound("data2vec-audio", num_conv_pos_embeddings=2, conv_pos_kernel_size=3),
    "sew": _sound("sew", squeeze_factor=2),
}
ZOO: dict[str, Builder] = {**IMAGES, **MIXED, **SOUND}
