"""From a model reference to a model and example inputs.

module:callable    returns the model, or (model, example inputs)
timm:NAME          torchvision:NAME          hf:PATH (a folder with config.json)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bough
from bough.cli.references import call, imported
from bough.errors import ModelReferenceError
from bough.exporting import load_plan


def resolve(reference: str, shape: str | None = None) -> tuple[nn.Module, Any]:
    """(model in eval mode, example inputs) of a reference; `shape` such as "1,3,224,224" overrides the inputs.

    Raises:
        ModelReferenceError: nothing is found, or example inputs are needed and not known.
    """
    kind, colon, name = reference.partition(":")
    if not colon or not name:
        raise ModelReferenceError(
            f"{reference!r} is no model reference: write module:callable, timm:NAME, torchvision:NAME or hf:PATH"
        )
    builder = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}.get(kind)
    model, inputs = builder(name) if builder else _callable(kind, name)
    if shape is not None:
        try:
            inputs = torch.randn([int(n) for n in shape.split(",")])
        except (ValueError, RuntimeError):
            raise ModelReferenceError(f"--input-shape {shape!r}: write sizes with commas, such as 1,3,224,224") from None
    if inputs is None:
        raise ModelReferenceError(f"{reference} gives no example inputs: return (model, inputs), or use --input-shape")
    return model.eval(), inputs


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `bough prune --out` saved."""

    model: nn.Module
    plan: bough.Plan


def pruned(reference: str, checkpoint: Path, shape: str | None) -> Pruned:
    """The pruned form of a model, from its checkpoint."""
    small = bough.load(checkpoint, lambda: resolve(reference, shape)[0])
    return Pruned(small, load_plan(checkpoint))


def _callable(module: str, name: str) -> tuple[nn.Module, Any]:
    reference = f"{module}:{name}"
    made = call(reference)
    model, inputs = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference} returned {type(model).__name__}, not an nn.Module")
    return model, inputs


def _timm(name: str) -> tuple[nn.Module, Any]:
    timm = imported("timm", f"timm:{name}")
    if name not in timm.list_models():
        raise ModelReferenceError(f"timm has no model called {name}")
    model = timm.create_model(name)
    return model, torch.randn(1, *model.default_cfg["input_size"])


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    models = imported("torchvision.models", f"torchvision:{name}")
    if name not in models.list_models():
        raise ModelReferenceError(f"torchvision has no model called {name}")
    side = 299 if name.startswith("inception") else 224
    return models.get_model(name, weights=None), torch.randn(1, 3, side, side)


def _hugging_face(path: str) -> tuple[nn.Module, Any]:
    transformers = imported("transformers", f"hf:{path}")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise ModelReferenceError(f"hf:{path}: there is no config.json in that folder")
    config = transformers.AutoConfig.from_pretrained(path)
    architecture = getattr(transformers, config.architectures[0], None) if config.architectures else None
    weights = any(f.endswith((".safetensors", ".bin")) for f in os.listdir(path))
    if weights:
        model = (architecture or transformers.AutoModel).from_pretrained(path)
    else:
        model = architecture(config) if architecture else transformers.AutoModel.from_config(config)
    if hasattr(config, "vocab_size"):
        return model, {"input_ids": torch.randint(0, config.vocab_size, (1, 16))}
    size = getattr(config, "image_size", 224)
    side = size if isinstance(size, int) else size[0]
    return model, {"pixel_values": torch.randn(1, getattr(config, "num_channels", 3), side, side)}
