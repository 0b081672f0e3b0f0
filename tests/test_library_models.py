"""Models as people have them, cut to half with no hint, equal their masked originals in float64."""

import pytest
import torch

import bough
from tests.zoo import randomize, timm_models, to_double, torchvision_models, transformers_models

ZOO = {
    **{f"torchvision:{n}": b for n, b in torchvision_models.ZOO.items()},
    **{f"timm:{n}": b for n, b in timm_models.ZOO.items()},
    **{f"transformers:{n}": b for n, b in transformers_models.ZOO.items()},
}
KINDS = {
    "torchvision:resnet50": {"channel"},
    "torchvision:vit_b_16": {"head", "neuron"},
    "timm:vit_tiny_patch16_224": {"head", "head_dim", "neuron"},
    "transformers:bert": {"hidden", "head", "head_dim", "neuron"},
    "transformers:gpt2": {"hidden", "head", "head_dim"},
    "transformers:llama": {"hidden", "head", "head_dim", "neuron"},
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
