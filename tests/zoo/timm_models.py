"""timm: the smallest model of each of its modules, with random weights: name -> () -> (model, example inputs)."""

from collections.abc import Callable

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops

Built = tuple[nn.Module, torch.Tensor]

# module of timm.models: (its smallest model, side of the image, whether the model must be told the side);
# the side is the smallest of 64, 96, ... at which the model runs, in training, too
SMALLEST = {
    "beit": ("beit_base_patch16_224", 64, True),
    "byoanet": ("halonet_h1", 256, False),
    "byobnet": ("test_byobnet", 64, False),
    "cait": ("cait_xxs24_224", 64, True),
    "coat": ("coat_tiny", 64, True),
    "convit": ("convit_tiny", 64, True),
    "convmixer": ("convmixer_768_32", 64, False),
    "convnext": ("test_convnext", 64, False),
    "cpubone": ("cpubone_nano", 64, False),
    "crossvit": ("crossvit_tiny_240", 64, False),
    "csatv2": ("csatv2", 64, False),
    "cspnet": ("cs3darknet_focus_s", 64, False),
    "cspnext": ("cspnext_tiny", 64, False),
    "davit": ("davit_tiny", 64, False),
    "deepseek_vit": ("deepseek_vit_412m", 112, False),
    "deit": ("deit_tiny_patch16_224", 64, True),
    "densenet": ("densenet121", 64, False),
    "dla": ("dla46x_c", 64, False),
    "dpn": ("dpn48b", 64, False),
    "edgenext": ("edgenext_xx_small", 64, False),
    "efficientformer": ("efficientformer_l1", 224, False),
    "efficientformer_v2": ("efficientformerv2_s0", 64, True),
    "efficientnet": ("test_efficientnet", 64, False),
    "efficientvim": ("efficientvim_m1", 64, False),
    "efficientvit_mit": ("efficientvit_b0", 64, False),
    "efficientvit_msra": ("efficientvit_m0", 64, False),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 64, False),
    "fasternet": ("fasternet_t0", 64, False),
    "fastvit": ("fastvit_t8", 64, False),
    "focalnet": ("focalnet_tiny_srf", 64, False),
    "gcvit": ("gcvit_xxtiny", 64, True),
    "gemma4_vit": ("gemma4_vit_167m", 64, False),
    "ghostnet": ("ghostnet_050", 64, False),
    "hardcorenas": ("hardcorenas_b", 64, False),
    "hgnet": ("hgnetv2_b0", 64, False),
    "hiera": ("hiera_tiny_224", 64, True),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, False),
    "hrnet": ("hrnet_w18_small", 64, False),
    "iformer": ("iformer_t", 64, False),
    "inception_next": ("inception_next_atto", 64, False),
    "inception_resnet_v2": ("inception_resnet_v2", 96, False),
    "inception_v3": ("inception_v3", 96, False),
    "inception_v4": ("inception_v4", 96, False),
    "lcnetv2": ("lcnetv2_small", 64, False),
    "levit": ("levit_128s", 64, True),
    "lowformer": ("lowformer_b0", 64, False),
    "mambaout": ("test_mambaout", 64, False),
    "maxxvit": ("test_coatnet", 64, True),
    "metaformer": ("poolformerv2_s12", 64, False),
    "mlp_mixer": ("gmlp_ti16_224", 64, True),
    "mobilenetv3": ("mobilenetv3_small_050", 64, False),
    "mobilenetv5": ("mobilenetv5_base", 64, False),
    "mobilevit": ("mobilevit_xxs", 64, False),
    "mvitv2": ("mvitv2_tiny", 64, False),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 64, False),
    "nasnet": ("nasnetalarge", 64, False),
    "nest": ("nest_tiny", 64, True),
    "nextvit": ("nextvit_small", 64, False),
    "nfnet": ("test_nfnet", 64, False),
    "pit": ("pit_ti_224", 64, True),
    "pnasnet": ("pnasnet5large", 64, False),
    "pvt_v2": ("pvt_v2_b0", 64, False),
    "qwen3_vit": ("qwen3_vit_88m", 64, False),
    "rdnet": ("rdnet_tiny", 64, False),
    "regnet": ("regnetx_002", 64, False),
    "repghost": ("repghostnet_050", 64, False),
    "repvit": ("repvit_m1", 64, False),
    "res2net": ("res2next50", 64, False),
    "resnest": ("resnest14d", 64, False),
    "resnet": ("test_resnet", 64, False),
    "resnetv2": ("resnetv2_18", 64, False),
    "rexnet": ("rexnet_100", 64, False),
    "selecsls": ("selecsls42", 64, False),
    "senet": ("legacy_seresnet18", 64, False),
    "sequencer": ("sequencer2d_s", 64, False),
    "shvit": ("shvit_s1", 64, False),
    "sknet": ("skresnet18", 64, False),
    "starnet": ("starnet_s050", 64, False),
    "swiftformer": ("swiftformer_xs", 64, False),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, True),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 64, True),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, True),
    "tiny_vit": ("tiny_vit_5m_224", 64, False),
    "tnt": ("tnt_s_legacy_patch16_224", 64, True),
    "tresnet": ("tresnet_m", 64, False),
    "twins": ("twins_svt_small", 64, False),
    "vgg": ("vgg11", 64, False),
    "visformer": ("visformer_tiny", 64, True),
    "vision_transformer": ("test_vit", 64, False),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, True),
    "vision_transformer_relpos": ("test_vit_relpos", 64, True),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64, False),
    "vitamin": ("vitamin_small_224", 64, True),
    "volo": ("volo_d1_224", 64, True),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, False),
    "xception": ("legacy_xception", 64, False),
    "xception_aligned": ("xception41p", 64, False),
    "xcit": ("xcit_nano_12_p8_224", 64, False),
}
# too large as they are: their smallest models with fewer blocks
FEWER = {"deepseek_vit": {"depth": 4}, "gemma4_vit": {"depth": 4}}


def _builder(name: str, side: int, sized: bool, options: dict[str, int]) -> Callable[[], Built]:
    def build() -> Built:
        declare_torchvision_ops()
        import timm

        given = {**options, "img_size": side} if sized else options
        return timm.create_model(name, pretrained=False, **given).eval(), torch.randn(2, 3, side, side)

    return build


ZOO: dict[str, Callable[[], Built]] = {module: _builder(*entry, FEWER.get(module, {})) for module, entry in SMALLEST.items()}
