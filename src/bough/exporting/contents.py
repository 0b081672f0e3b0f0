"""What `plan.json` of a checkpoint says, and how both files of a checkpoint are read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bough.errors import CheckpointError
from bough.planning import Plan
from bough.quantization.saved import REPORT
from bough.sparsity.sparse_files import is_encoded, read_encoded
from bough.storage import file_digest
from bough.storage.schema import Invalid, flag, items, one_of, read_json, record, row, shown, table, text, whole

FORMAT, VERSION = "bough-checkpoint", 2
PRETRAINED, PRETRAINED_VERSION = "bough-pretrained", 1
PLAN, WEIGHTS, PER_LAYER = "plan.json", "model.safetensors", "per_layer_config.json"


@dataclass(frozen=True, slots=True)
class Contents:
    """What `plan.json` says. `tensors`: {name: (shape, dtype)}. `extras`: {name: what a module's `get_extra_state` returned}.
    `weights_sha256`: sha256 of the weights' file; None in checkpoints of version 1. `files`: {name: sha256} of the files of a
    folder of transformers, which has its weights in these; None in a checkpoint of bough's own."""

    plan: Plan
    training: bool
    tensors: dict[str, tuple[list[int], str]]
    aliases: dict[str, str]
    extras: dict[str, Any]
    weights_sha256: str | None
    files: dict[str, str] | None = None


def checksum(contents: Mapping[str, Any]) -> str:
    """The sha256 of JSON data, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_contents(place: Path) -> Contents:
    path = place / PLAN
    if not path.is_file():
        if (place / REPORT).is_file():
            raise CheckpointError(f"{place} has a quantized program, no checkpoint: load_quantized or `--quantized` reads it")
        raise CheckpointError(f"{place} has no checkpoint: {PLAN} is missing")
    try:
        data = read_json(path.read_bytes())
        if isinstance(data, dict) and data.get("format") == PRETRAINED:
            return _checked_pretrained(data)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise Invalid("it is not part of a bough checkpoint")
        if data.get("version") not in _SCHEMAS or isinstance(data["version"], bool):
            raise Invalid(f"it is of version {shown(data.get('version'))}, and this bough reads versions 1 and 2")
        return _checked(data)
    except (Invalid, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is damaged or truncated: it nests too deep") from None


def _checked(data: dict[str, Any]) -> Contents:
    """The contents of `plan.json`, once they are known to fit their schema and each other.

    Raises:
        Invalid: they do not.
    """
    found = _SCHEMAS[data["version"]](data, "")
    tensors, aliases = found["tensors"], found["aliases"]
    for alias, name in aliases.items():
        if name not in tensors or alias in tensors:
            raise Invalid(f"aliases[{json.dumps(alias)}] is {json.dumps(name)}, which is not the name of a saved tensor")
    for name, extra in found.get("extras", {}).items():
        _check_packed(extra, tensors, f"extras[{json.dumps(name)}]")
    plan = Plan.from_dict(data["plan"], "plan")
    if "checksum" in found and found["checksum"] != checksum({k: v for k, v in data.items() if k != "checksum"}):
        raise Invalid("its content has changed since it was written (the checksum differs)")
    return Contents(plan, found["training"], tensors, aliases, found.get("extras", {}), found.get("weights_sha256"))


def _checked_pretrained(data: dict[str, Any]) -> Contents:
    """The contents of `plan.json` in a folder of transformers.

    Raises:
        Invalid: they do not fit their schema.
    """
    found = _PRETRAINED_SCHEMA(data, "")
    if found["checksum"] != checksum({k: v for k, v in data.items() if k != "checksum"}):
        raise Invalid("its content has changed since it was written (the checksum differs)")
    return Contents(Plan.from_dict(data["plan"], "plan"), found["training"], {}, {}, {}, "", found["files"])


def pretrained_contents(plan: Plan, files: Mapping[str, str], *, training: bool) -> dict[str, Any]:
    """Return what `plan.json` says in a folder of transformers, all but the checksum. `files`: {name: sha256}."""
    head = {"format": PRETRAINED, "version": PRETRAINED_VERSION, "training": training}
    return {**head, "files": dict(files), "plan": plan.to_dict()}


def forget_pretrained(place: Path, but: Collection[str] = ()) -> None:
    """Delete from a folder the plan of a model of transformers, its config, and the files that belong to it except `but`.

    Where the folder has no such plan, or a damaged one, only the fields of layers that `save` wrote are deleted.
    """
    (place / PER_LAYER).unlink(missing_ok=True)
    with suppress(CheckpointError):
        files = read_contents(place).files
        if files is None:
            return
        (place / PLAN).unlink(missing_ok=True)
        for name in ["config.json", *(n for n in files if n not in but and Path(n).name == n)]:
            (place / name).unlink(missing_ok=True)


def _check_packed(value: Any, tensors: Mapping[str, Any], place: str) -> None:
    """Check what `packed` made of nested values."""
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise Invalid(f"{place} is a list, and must be a number, text, or an object of one field")
        return
    ((kind, inner),) = value.items() if len(value) == 1 else [("", None)]
    if kind == "tensor":
        if not isinstance(inner, str) or inner not in tensors:
            raise Invalid(f"{place} refers to a tensor that is not saved")
    elif kind in ("list", "tuple", "dict") and isinstance(inner, list):
        for i, item in enumerate(inner):
            if kind == "dict" and not (isinstance(item, list) and len(item) == 2 and not isinstance(item[0], (dict, list))):
                raise Invalid(f"{place}[{i}] is not a pair of a key and a value")
            _check_packed(item[1] if kind == "dict" else item, tensors, f"{place}[{i}]")
    else:
        raise Invalid(f"{place} is an object of an unknown kind")


def _any(value: Any, place: str) -> Any:
    return value


_FIRST = {
    "format": one_of(FORMAT),
    "version": one_of(1, 2),
    "aliases": table(text),
    "tensors": table(row(items(whole()), text)),
    "training": flag,
    "plan": _any,  # by the schema of plans
}
_PRETRAINED_SCHEMA = record(
    {
        "format": one_of(PRETRAINED),
        "version": one_of(PRETRAINED_VERSION),
        "training": flag,
        "files": table(text),
        "plan": _any,
        "checksum": text,
    }
)
_SCHEMAS = {1: record(_FIRST), 2: record({**_FIRST, "extras": table(_any), "weights_sha256": text, "checksum": text})}


def read_weights(place: Path, contents: Contents) -> dict[str, Tensor]:
    """The tensors of the weights' file, once they are known to be those that were saved with the plan."""
    path = place / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{place} has no weights: {path.name} is missing")
    try:
        intact = contents.weights_sha256 is None or file_digest(path) == contents.weights_sha256
        tensors: dict[str, Tensor] = read_encoded(path) if is_encoded(path) else load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None
    found = {n: (list(t.shape), str(t.dtype)) for n, t in tensors.items()}
    if found != contents.tensors:
        names = sorted(found.keys() | contents.tensors.keys())
        wrong = next(n for n in names if found.get(n) != contents.tensors.get(n))
        raise CheckpointError(f"{path} does not belong to the plan beside it: {wrong} differs")
    if not intact:
        raise CheckpointError(
            f"{path} is damaged, or of another checkpoint: its sha256 is not the one in {PLAN}; copy both files again"
        )
    return tensors
