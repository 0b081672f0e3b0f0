"""Models as people have them, cut to half with no hint, equal their masked originals in float64.

These are models that take seconds; `python -m benchmarks.coverage` runs all of the zoo.
"""

import pytest
import torch

import bough
from tests.zoo import randomize, timm_models, to_double, torchvision_models, transformers_models

TORCHVISION = (
    "alexnet", "resnet34", "resnext50_32x4d", "densenet121", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t", "fcn_resnet50", "deeplabv3_resnet50", "r3d_18", "mc3_18",
    "retinanet_resnet50_fpn_heads",
)  # fmt: skip
SLOW = (
    "beit", "byoanet", "coat", "csatv2", "davit", "efficientformer_v2", "efficientvit_msra", "gemma4_vit",
    "inception_resnet_v2", "mobilenetv5",
)  # fmt: skip
TIMM = tuple(n for n in timm_models.ZOO if n < "n" and n not in SLOW)
TRANSFORMERS = (
    "bert", "roberta", "electra", "albert", "distilbert", "deberta_v2", "modernbert", "llama", "llama_gqa", "llama_tied",
    "mistral", "qwen2", "qwen3", "qwen3_moe_loop", "gemma2", "phi", "phi3", "olmo2", "granite", "gpt2", "gpt_neox", "gptj",
    "opt", "bloom", "falcon", "mamba", "t5", "bart", "marian", "whisper", "wav2vec2", "vit", "deit", "dinov2", "swin",
    "convnext", "convnextv2", "resnet", "regnet", "mobilevit", "segformer", "pvt", "detr", "clip", "videomae",
)  # fmt: skip
ZOO = {
    **{f"torchvision:{n}": torchvision_models.ZOO[n] for n in TORCHVISION},
    **{f"timm:{n}": timm_models.ZOO[n] for n in TIMM},
    **{f"transformers:{n}": transformers_models.ZOO[n] for n in TRANSFORMERS},
}
KINDS = {
    "torchvision:resnet34": {"channel"},
    "timm:deit": {"head", "head_dim", "neuron"},
    "transformers:bert": {"hidden", "head", "head_dim", "neuron"},
    "transformers:gpt2": {"hidden", "head", "head_dim"},
    "transformers:llama_gqa": {"hidden", "head", "head_dim", "neuron"},
    "transformers:t5": {"head", "head_dim", "neuron"},
}


@pytest.mark.parametrize("name", ZOO)
def test_half_of_everything_equals_the_masked_original(name):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    model, inputs = randomize(model.eval()), to_double(inputs)
    graph = bough.trace(model, inputs)
    assert not graph.unknown_ops
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    cut = {g.kind for g in graph.groups if plan.groups[g.name][0] < g.size}
    assert cut
    assert cut >= KINDS.get(name, set())
    report = bough.verify(model, bough.cut(model, plan), plan, inputs)
    assert report.max_error < 1e-9
    assert report.scale > 1e-3
