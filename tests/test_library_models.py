"""Models as people have them, cut to half with no hint, equal their masked originals in float64."""

import pytest
import torch

import bough
from tests.zoo import randomize, timm_models, to_double, torchvision_models, transformers_models

TORCHVISION = (
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "regnet_y_400mf",
    "swin_t",
)
TIMM = ("byobnet", "deit", "ghostnet", "mobilenetv3", "resnet", "vision_transformer")
TRANSFORMERS = ("bert", "roberta", "gpt2", "llama_gqa", "mistral", "qwen2", "t5", "bart", "vit")
ZOO = {
    **{f"torchvision:{n}": torchvision_models.ZOO[n] for n in TORCHVISION},
    **{f"timm:{n}": timm_models.ZOO[n] for n in TIMM},
    **{f"transformers:{n}": transformers_models.ZOO[n] for n in TRANSFORMERS},
}
KINDS = {
    "torchvision:resnet18": {"channel"},
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
