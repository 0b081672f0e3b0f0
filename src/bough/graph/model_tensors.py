"""Tensors that modules hold, by name: parameters, buffers, tensor attributes, and tensors in containers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def model_tensor(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter, buffer or tensor attribute of `model` called `name`; of one in a container the name ends in its keys."""
    place, *keys = name.removesuffix("]").replace("][", "[").split("[")
    *path, leaf = place.split(".")
    owner = model
    for key in path:  # `get_submodule` does the same through `__getattr__`, five times as slowly
        inner = owner._modules[key]
        assert inner is not None
        owner = inner
    holders = (owner._parameters, owner._buffers, owner.__dict__)
    value: Any = next((values[leaf] for values in holders if leaf in values), None)
    for key in keys:
        value = _entry(value, key)
    assert isinstance(value, torch.Tensor)
    return value


def module_of(name: str) -> str:
    """The name of the module that holds the parameter, buffer or tensor attribute called `name`.

    Example:
        >>> module_of("encoder.rnn.weight_hh_l0"), module_of("encoder.rnn.hidden[0]"), module_of("cache[layer.1]")
        ('encoder.rnn', 'encoder.rnn', '')
    """
    return name.partition("[")[0].rpartition(".")[0]


def _entry(value: Any, key: str) -> Any:
    """What a container or an object holds under a key that is written as text."""
    if isinstance(value, Mapping):
        return next((v for k, v in value.items() if str(k) == key), None)
    if isinstance(value, Sequence):
        return value[int(key)]
    return value[int(key)] if isinstance(value, deque) else getattr(value, "__dict__", {}).get(key)
