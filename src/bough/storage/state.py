"""Nested values with tensors in one file: tensors as safetensors, the rest as JSON in the file's header; never pickle.

One file, because renaming one file is atomic: whoever is killed leaves the old state or the new one, whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bough.errors import CheckpointError
from bough.storage.atomic import write_files
from bough.storage.digest import tensors_digest
from bough.storage.tensors import memory

_KEY, _DIGEST = "bough-state", "sha256"


def write_state(path: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None; tensors that share memory once.

    Raises:
        CheckpointError: the tree holds something else, such as an object of a class of one's own.
        WriteError: the file can not be written; an older one stays as it was.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(packed(tree, tensors))
    stored = storable(tensors)
    digest = tensors_digest(sorted(stored.items()), text)
    write_files([(path, lambda part: save_file(stored, part, {_KEY: text, _DIGEST: digest}))])


def read_state(path: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, with all tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, or is another one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if _KEY not in header:
                raise CheckpointError(f"{path} is not the state of a run of bough")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        text = header[_KEY]
        if header.get(_DIGEST, None) not in (None, tensors_digest(sorted(tensors.items()), text)):  # None: of an older bough
            raise CheckpointError(f"{path} is damaged: its content has changed since it was written (the sha256 differs)")
        return dict(unpacked(json.loads(text), tensors))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # only where there is no digest
        raise CheckpointError(f"{path} is damaged: its header is not that of a state") from None


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors takes them: on the CPU, contiguous, and none in the memory of another."""
    made: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        alone = storage.nbytes() == value.numel() * value.itemsize and storage.data_ptr() not in storages
        made[name] = value if alone else value.clone()
        storages.add(made[name].untyped_storage().data_ptr())
    return made


def packed(value: Any, tensors: dict[str, Tensor], path: tuple[str, ...] = (), seen: dict[Any, str] | None = None) -> Any:
    """Return nested values as plain JSON data; their tensors are added to `tensors`, by their place in the nest.

    Raises:
        CheckpointError: a value is of another kind; the message names its place.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        name = seen.get(memory(value)) or _unused("/".join(path), tensors)
        seen[memory(value)] = name
        tensors.setdefault(name, value)
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[_key(k, path), packed(v, tensors, (*path, str(k)), seen)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [packed(v, tensors, (*path, str(i)), seen) for i, v in enumerate(value)]}
    raise CheckpointError(f"{'/'.join(path)} is a {type(value).__name__}, which can not be saved without pickle")


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the nested values that `packed` made JSON data of."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: unpacked(v, tensors) for k, v in inner}
    items = [unpacked(v, tensors) for v in inner]
    return tuple(items) if kind == "tuple" else items


def _unused(name: str, tensors: Mapping[str, Tensor]) -> str:
    """A name that no tensor has: two places may read the same, as `{"a/b": x, "a": {"b": y}}` has it."""
    return name if name not in tensors else _unused(f"{name}'", tensors)


def _key(key: Any, path: tuple[str, ...]) -> Any:
    if key is None or isinstance(key, (bool, int, float, str)):
        return key
    raise CheckpointError(f"{'/'.join(path)} has a key of type {type(key).__name__}, which can not be saved without pickle")
