"""What is done with a model beside calling it: each use is a function of a model and its inputs that raises where it fails.

A use returns tensors that have to be equal, pairs of (what was, what is after); a use that only has to run returns none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import zoo

Pairs = list[tuple[Tensor, Tensor]]


class NotMeant(Exception):
    """The use is not for this model."""


def _method(model: nn.Module, name: str) -> Callable[..., Any]:
    found = getattr(model, name, None)
    if not callable(found):
        raise NotMeant(name)
    return found  # type: ignore[no-any-return]


def _check(claim: bool, what: str) -> None:
    if not claim:
        raise AssertionError(what)


def reset_classifier(model: nn.Module, inputs: Any) -> Pairs:
    """timm: seven classes in place of those that the model has."""
    _method(model, "reset_classifier")(7)
    model.to(next(iter(zoo.floats(inputs))).dtype)
    outputs = zoo.floats(zoo.run(model, inputs))
    _check(all(t.shape[-1] == 7 for t in outputs), f"outputs of shapes {[tuple(t.shape) for t in outputs]}")
    return []


def reparameterize_model(model: nn.Module, inputs: Any) -> Pairs:
    """timm: branches of training become one convolution."""
    from timm.utils.model import reparameterize_model

    ready = {n for m in model.modules() for n in ("fuse", "reparameterize", "switch_to_deploy") if hasattr(m, n)}
    if not ready:
        raise NotMeant("no module can be reparameterized")
    return _paired(zoo.run(model, inputs), zoo.run(reparameterize_model(model), inputs))


def forward_features(model: nn.Module, inputs: Any) -> Pairs:
    """timm: the two halves of forward."""
    features, head = _method(model, "forward_features"), _method(model, "forward_head")
    return _paired(zoo.run(model, inputs), head(features(inputs)))


def forward_intermediates(model: nn.Module, inputs: Any) -> Pairs:
    """timm: the outputs of all stages, of as many channels as `feature_info` says."""
    found = _method(model, "forward_intermediates")(inputs, intermediates_only=True)
    listed = [i.get("num_chs") for i in getattr(model, "feature_info", ()) if isinstance(i, dict)]
    if len(listed) == len(found):
        _check(all(n in t.shape for n, t in zip(listed, found, strict=True)), f"feature_info says {listed}")
    return []


def generate(model: nn.Module, inputs: Any) -> Pairs:
    """transformers: some more tokens."""
    if not getattr(model, "can_generate", lambda: False)():
        raise NotMeant("it does not generate")
    given = {k: v for k, v in inputs.items() if k not in ("labels", "use_cache")} if isinstance(inputs, dict) else inputs
    more = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    made = model.generate(**given, **more) if isinstance(given, dict) else model.generate(given, **more)
    _check(made is not None, "nothing was generated")
    return []


def resize_token_embeddings(model: nn.Module, inputs: Any) -> Pairs:
    """transformers: three more tokens."""
    resize = _method(model, "resize_token_embeddings")
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise NotMeant("it has no token embeddings")
    n = model.get_input_embeddings().weight.shape[0]
    resize(n + 3)
    zoo.run(model, inputs)
    _check(model.get_input_embeddings().weight.shape[0] == n + 3, "not resized")
    return []


def gradient_checkpointing(model: nn.Module, inputs: Any) -> Pairs:
    """transformers: layers are run again in the backward pass."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise NotMeant("it does not support it")
    model.gradient_checkpointing_enable()
    model.train()
    with torch.enable_grad():
        sum(t.sum() for t in zoo.floats(zoo.run(model, inputs))).backward()  # type: ignore[union-attr]
    _check(any(p.grad is not None for p in model.parameters()), "no gradient")
    return []


def train_detector(model: nn.Module, inputs: Any) -> Pairs:
    """torchvision: the losses of a detector, and their gradients."""
    images = inputs[0] if isinstance(inputs, tuple) else None
    if not isinstance(images, list) or (not hasattr(model, "roi_heads") and not hasattr(model, "anchor_generator")):
        raise NotMeant("it is no detector")
    side = images[0].shape[-1]
    boxes = torch.tensor([[4.0, 4.0, side / 2, side / 2], [8.0, 6.0, side - 2.0, side - 4.0]], dtype=images[0].dtype)
    target = {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": torch.ones(2, side, side, dtype=torch.uint8)}
    target["keypoints"] = torch.tensor([[[9.0, 9.0, 1.0]] * 17] * 2, dtype=images[0].dtype)
    model.train()
    with torch.enable_grad():
        losses = model(images, [target for _ in images])
        sum(losses.values()).backward()
    return []


def fuse_conv_bn(model: nn.Module, inputs: Any) -> Pairs:
    """torch: each convolution and the batch norm that reads it become one."""
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise NotMeant("it has no batch norm")
    return _paired(zoo.run(model, inputs), zoo.run(fuse(model), inputs))


def _paired(before: Any, after: Any) -> Pairs:
    return list(zip(zoo.floats(before), zoo.floats(after), strict=True))


USES: dict[str, dict[str, Callable[[nn.Module, Any], Pairs]]] = {
    "timm": {f.__name__: f for f in (reset_classifier, reparameterize_model, forward_features, forward_intermediates)},
    "transformers": {f.__name__: f for f in (generate, resize_token_embeddings, gradient_checkpointing)},
    "torchvision": {f.__name__: f for f in (train_detector, fuse_conv_bn)},
    "small": {f.__name__: f for f in (fuse_conv_bn,)},
}
USES["timm"]["fuse_conv_bn"] = fuse_conv_bn


def outcomes(model: nn.Module, inputs: Any, suite: str) -> Iterator[tuple[str, str]]:
    """Yield (use, what came of it) of a model: "not meant", "works", or what went wrong."""
    for name, use in USES[suite].items():
        try:
            with torch.no_grad():
                torch.manual_seed(0)
                pairs = use(copy.deepcopy(model), copy.deepcopy(inputs))
        except NotMeant:
            yield name, "not meant"
            continue
        except Exception as error:
            yield name, zoo.cause(error)
            continue
        apart = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs if a.numel()]
        tolerance = 1e-8 if pairs and pairs[0][0].dtype == torch.float64 else 1e-3
        yield name, "works" if max(apart, default=0.0) < tolerance else f"differs by {max(apart):.1e}"
