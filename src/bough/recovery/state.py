"""A training run's state in one file: tensors as safetensors, the rest as JSON in its header; never pickle.

One file, because renaming one file is atomic: whoever is killed leaves the old state or the new one, whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bough.errors import CheckpointError
from bough.tracing.execution import memory

_KEY = "bough-state"


def write_state(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers, strings and None; tensors that share memory once.

    Raises:
        CheckpointError: the tree holds something else, such as an object of an own class.
    """
    tensors: dict[str, Tensor] = {}
    seen: dict[Any, str] = {}
    text = json.dumps(_packed(tree, (), tensors, seen))
    part = path.with_name(f"{path.name}.part")
    save_file({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}, part, {_KEY: text})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        CheckpointError: the file is damaged, or is another one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise CheckpointError(f"{path} is not the state of a training run")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        return dict(_unpacked(json.loads(text), tensors))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The model's `state_dict`, and the buffers that it leaves out as not persistent: a run goes on from them, too."""
    state = dict(model.state_dict())
    return state | {n: b for n, b in model.named_buffers() if n not in state}


def restore(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Puts a `whole_state` back.

    Raises:
        RuntimeError: as `load_state_dict` does.
    """
    own = set(model.state_dict())
    others = {n: b for n, b in model.named_buffers() if n not in own}
    model.load_state_dict({n: v for n, v in state.items() if n not in others})
    with torch.no_grad():
        for name, buffer in others.items():
            if name in state:
                buffer.copy_(state[name])


def _packed(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        name = seen.setdefault(memory(value), "/".join(path))
        tensors.setdefault(name, value)
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[k, _packed(v, (*path, str(k)), tensors, seen)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, (*path, str(i)), tensors, seen) for i, v in enumerate(value)]}
    raise CheckpointError(f"{'/'.join(path)} is a {type(value).__name__}, which can not be saved without pickle")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _unpacked(v, tensors) for k, v in inner}
    items = [_unpacked(v, tensors) for v in inner]
    return tuple(items) if kind == "tuple" else items
