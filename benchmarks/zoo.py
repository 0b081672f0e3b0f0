"""The models of the coverage benchmark: those of tests/zoo by suite and name, built in the widest precision they run in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import randomize, to_double

TABLES = {
    "torchvision": ("torchvision_models",),
    "timm": ("timm_models",),
    "transformers": ("transformers_models",),
    "small": ("small", "small_layers", "small_sequence", "small_recurrent"),
}


def suite(name: str) -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Model name -> builder."""
    return {k: v for table in TABLES[name] for k, v in importlib.import_module(f"tests.zoo.{table}").ZOO.items()}


def run(model: nn.Module, inputs: Any) -> Any:
    """The model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def floats(value: Any) -> list[Tensor]:
    """All floating tensors in a structure of outputs, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in floats(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in floats(v)]
    return floats(vars(value)) if hasattr(value, "__dataclass_fields__") else []


def runs(model: nn.Module, inputs: Any) -> str | None:
    """None where the model runs and gives finite numbers; else what went wrong."""
    try:
        with torch.no_grad():
            outputs = floats(run(model, inputs))
    except Exception as error:
        return cause(error)
    return None if all(bool(t.isfinite().all()) for t in outputs) else "not finite"


def cause(error: BaseException) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def build(suite_name: str, name: str, seed: int) -> tuple[nn.Module, Any, bool]:
    """(model with random weights in eval mode, its inputs, whether both are in float64): float32 where only that runs."""
    return built(suite(suite_name)[name], seed)


def built(make: Callable[[], tuple[nn.Module, Any]], seed: int) -> tuple[nn.Module, Any, bool]:
    """What `build` gives, of the model that a function makes."""
    torch.manual_seed(seed)
    model, inputs = make()
    model, precise = randomize(model.eval(), seed), to_double(inputs)
    if runs(model, precise) is None:
        return model, precise, True
    model = model.float()
    failure = runs(model, inputs)
    if failure is not None:
        raise RuntimeError(f"the model itself does not run: {failure}")
    return model, inputs, False
