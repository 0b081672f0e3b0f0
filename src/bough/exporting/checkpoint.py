"""`save` and `load`: a plan as JSON, weights as safetensors; loading runs no code from the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.cutting import cut_, rebuild
from bough.errors import CheckpointError
from bough.planning import Plan

FORMAT, VERSION = "bough-checkpoint", 1
PLAN, WEIGHTS = "plan.json", "model.safetensors"


class Pruned(Protocol):
    """What `prune` gives: a cut model and the plan it was cut by."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def plan(self) -> Plan: ...


def save(result: Pruned, folder: str | os.PathLike[str]) -> Path:
    """Writes `plan.json` and `model.safetensors` into `folder` (made if absent) and returns its path.

    Each file is written beside its place and then renamed, so an old checkpoint is never half overwritten. Tensors that
    share memory are written once.
    """
    check_arguments(save, locals())
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors, aliases = _unique(result.model.state_dict(keep_vars=True))
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "aliases": aliases,
        "tensors": {n: [list(t.shape), str(t.dtype)] for n, t in tensors.items()},
        "training": result.model.training,
        "plan": result.plan.to_dict(),
    }
    weights, plan = place / f"{WEIGHTS}.part", place / f"{PLAN}.part"
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, weights)
    plan.write_text(json.dumps(meta), encoding="utf-8")
    weights.replace(place / WEIGHTS)
    plan.replace(place / PLAN)
    return place


def load(
    folder: str | os.PathLike[str],
    build_model: Callable[[], nn.Module],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """Builds the original model, cuts it by the saved plan and fills in the saved weights, bit for bit.

    Args:
        folder: as written by `save`.
        build_model: makes a model of the original architecture (its weights do not matter).
        example_inputs, dynamic_shapes: as for `rebuild`; needed, and used, only for what `rebuild` made.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, or of another version, or the two do not fit; or the model
            was rebuilt, and no example inputs are given.
        PlanError: `build_model` makes another model than the one that was pruned.
    """
    check_arguments(load, locals())
    place = Path(folder)
    meta = _read_meta(place)
    plan = Plan.from_json(json.dumps(meta["plan"]))
    tensors = _read_weights(place / WEIGHTS, meta["tensors"])
    model = build_model().train(bool(meta["training"]))
    if plan.rebuild and example_inputs is None:
        raise CheckpointError(
            f"the model in {place} was made by bough.rebuild: give example_inputs, so that it can be rebuilt, too. (To load "
            "without the original code, save the program: torch.export.save(torch.export.export(small, args), path))"
        )
    model = rebuild(model, plan, example_inputs, dynamic_shapes=dynamic_shapes) if plan.rebuild else cut_(model, plan)
    tensors.update({alias: tensors[name] for alias, name in meta["aliases"].items()})
    state = model.state_dict(keep_vars=True)
    _fits(state, tensors, place)
    with torch.no_grad():
        for name, held in state.items():
            saved = tensors[name]
            if held.dtype == saved.dtype:
                held.copy_(saved)
            else:
                held.data = saved.to(held.device)
    return model.train(bool(meta["training"]))


def _unique(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            if id(tensor) in first:
                aliases[name] = first[id(tensor)]
            else:
                first[id(tensor)] = name
                tensors[name] = tensor
    memory: dict[int, str] = {}
    for name, tensor in list(tensors.items()):
        at = tensor.untyped_storage().data_ptr()
        if at and memory.setdefault(at, name) != name:
            tensors[name] = tensor.detach().clone()
    return tensors, aliases


def _read_meta(place: Path) -> dict[str, Any]:
    path = place / PLAN
    if not path.is_file():
        raise CheckpointError(f"{place} holds no checkpoint: {PLAN} is missing")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not part of a bough checkpoint")
    if meta.get("version") != VERSION:
        raise CheckpointError(f"{path} is of version {meta.get('version')!r}; this bough reads version {VERSION}")
    kinds = {"plan": dict, "aliases": dict, "tensors": dict, "training": bool}
    for key, kind in kinds.items():
        if not isinstance(meta.get(key), kind):
            raise CheckpointError(f"{path} is damaged: its {key!r} is missing or of the wrong kind")
    return meta


def _read_weights(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no weights: {path.name} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None
    found = {n: [list(t.shape), str(t.dtype)] for n, t in tensors.items()}
    if found != expected:
        wrong = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise CheckpointError(f"{path} does not belong to the plan beside it: {wrong[0]} differs")
    return tensors


def _fits(state: dict[str, Any], tensors: dict[str, Tensor], place: Path) -> None:
    for name in sorted(state.keys() | tensors.keys()):
        if name not in state or name not in tensors:
            where = "the weights" if name not in tensors else "the model"
            raise CheckpointError(f"the checkpoint in {place} does not fit: {name} is missing in {where}")
        if state[name].shape != tensors[name].shape:
            raise CheckpointError(
                f"the checkpoint in {place} does not fit: {name} has shape {list(tensors[name].shape)} there and "
                f"{list(state[name].shape)} after the plan's cut"
            )
