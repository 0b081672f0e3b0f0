"""What else is done with a model works on the cut one: fusing, reparameterizing, exporting, another classifier, generating.

Where it is meaningful, it gives what it gives before the cut, sliced.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bough
from tests.test_attributes import Classifier, half
from tests.zoo import randomize, timm_models, to_double, transformers_models
from tests.zoo.shim import declare_torchvision_ops


class Residual(nn.Module):
    """A convolutional net whose stem and inner width are cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.bn1, self.relu = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(24, 16, 3, padding=1, groups=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def pruned():
    model, x = randomize(Residual().eval()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = half(model, x)
    return model, bough.cut(model, plan), plan, x


PAIRS = (("stem", "bn"), ("conv1", "bn1"), ("conv2", "bn2"))


def test_fusing_after_the_cut_is_cutting_what_is_fused(pruned):
    model, small, plan, _ = pruned
    for conv, bn in PAIRS:
        wide = fuse_conv_bn_eval(model.get_submodule(conv), model.get_submodule(bn))
        narrow = fuse_conv_bn_eval(small.get_submodule(conv), small.get_submodule(bn))
        weight, bias = wide.weight, wide.bias
        for dim, kept in plan.kept[f"{conv}.weight"].items():
            weight = weight.index_select(dim, torch.tensor(kept))
            bias = bias[kept] if dim == 0 else bias
        assert torch.allclose(narrow.weight, weight, atol=1e-12)
        assert torch.allclose(narrow.bias, bias, atol=1e-12)


def test_fusing_by_modules_and_by_fx(pruned):
    _, small, _, x = pruned
    before = small(x)
    assert torch.allclose(fuse(small)(x), before, atol=1e-12)
    fused = fuse_modules(copy.deepcopy(small), [[*p] for p in PAIRS])
    assert torch.allclose(fused(x), before, atol=1e-12)


def test_exporting(pruned):
    _, small, _, x = pruned
    before = small(x)
    assert torch.allclose(torch.export.export(small, (x,)).module()(x), before, atol=1e-12)
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(small, x), stream)
    stream.seek(0)
    assert torch.allclose(torch.jit.load(stream)(x), before, atol=1e-12)


def test_exporting_to_onnx(pruned):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    _, small, _, x = pruned
    small, x, stream = copy.deepcopy(small).float(), x.float(), io.BytesIO()
    torch.onnx.export(small, (x,), stream, dynamo=False)
    session = onnxruntime.InferenceSession(stream.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), small(x), atol=1e-4)


def test_another_classifier_after_the_cut_is_cutting_the_model_that_has_it():
    torch.manual_seed(0)
    x, keep = torch.randn(2, 8), {"a": 9, "b": 13}
    model = Classifier().eval()
    first = copy.deepcopy(model)
    first.reset_classifier(7)
    plan = half(first, x, keep=keep)
    wanted = bough.cut(first, plan)
    small = bough.cut(model, half(model, x, keep=keep))
    small.reset_classifier(7)
    small.fc.load_state_dict({"weight": first.fc.weight[:, plan.kept["fc.weight"][1]], "bias": first.fc.bias})
    assert torch.equal(small(x), wanted(x))


@pytest.mark.parametrize("group_size", [None, 1, 8])
def test_reparameterizing_of_timm(group_size):
    declare_torchvision_ops()
    from timm.models.byobnet import MobileOneBlock
    from timm.utils.model import reparameterize_model

    blocks = [MobileOneBlock(32, 32, 3, group_size=group_size) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    model, x = randomize(model.eval()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = bough.cut(model, half(model, x))
    assert torch.allclose(reparameterize_model(small)(x), small(x), atol=1e-10)


@pytest.mark.parametrize("name", ["resnet", "levit"])
def test_classifiers_and_features_of_timm(name):
    model, x = timm_models.ZOO[name]()
    model, x = randomize(model), to_double(x)
    plan = half(model, x)
    small, stale = bough.cut(model, plan), {s.name for s in plan.stale}
    assert torch.allclose(small.forward_head(small.forward_features(x)), small(x), atol=1e-12)
    features = small.forward_intermediates(x, intermediates_only=True)
    if len(features) == len(small.feature_info):  # of vision transformers, only the last ones
        for i, (info, one) in enumerate(zip(small.feature_info, features, strict=True)):
            assert info["num_chs"] in one.shape or f"feature_info[{i}].num_chs" in stale
    small.reset_classifier(7)
    assert small.double()(x).shape == (2, 7)


def test_a_language_model_generates_and_takes_more_tokens():
    model, inputs = transformers_models.ZOO["llama"]()
    small = bough.cut(model, half(model, inputs))
    ids = inputs["input_ids"]
    assert small.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] <= ids.shape[1] + 3
    small.resize_token_embeddings(small.get_input_embeddings().num_embeddings + 3)
    small.gradient_checkpointing_enable()
    small.train()(**inputs).logits.sum().backward()
    assert all(p.grad is not None for p in small.parameters())
