"""Checkpoints of cut models: the plan as JSON, the weights as safetensors; loading runs no code from the files.

`plan.json` has the sha256 of the weights' file and of its own content, so that damage to either is an error at load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.cutting import cut_, rebuild
from bough.errors import CheckpointError
from bough.exporting.contents import (
    FORMAT,
    PER_LAYER,
    PLAN,
    VERSION,
    WEIGHTS,
    Contents,
    checksum,
    forget_pretrained,
    read_contents,
    read_weights,
)
from bough.exporting.pretrained_tensors import pretrained_tensors
from bough.planning import Plan, per_layer_config
from bough.recovery import check_cut_shapes
from bough.sparsity.attached_masks import without_masks
from bough.sparsity.formats import format_named
from bough.sparsity.sparse_files import write_encoded
from bough.storage import file_digest, make_folder, write_files, write_text
from bough.storage.state import packed, storable, unpacked
from bough.tracing.capture.wrapped import unwrap

_CALLS = (
    "call bough.save(result, folder) with what prune, refit, iterate or sparsify returns, or bough.save(model, plan, folder)"
)
Folder = str | os.PathLike[str]


@runtime_checkable
class Pruned(Protocol):
    """A model and the plan that it was cut by: what `prune`, `refit`, `merge`, `iterate` and `sparsify` return."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def plan(self) -> Plan: ...


@overload
def save(result: Pruned, folder: Folder, /, *, overwrite: bool = ..., format: str = ..., compress: bool = ...) -> Path: ...
@overload
def save(result: Pruned, *, folder: Folder, overwrite: bool = ..., format: str = ..., compress: bool = ...) -> Path: ...
@overload
def save(
    model: nn.Module, plan: Plan, folder: Folder, *, overwrite: bool = ..., format: str = ..., compress: bool = ...
) -> Path: ...
def save(  # type: ignore[misc]
    model: Any, plan: Any = None, folder: Any = None, *, overwrite: bool = False, format: str = "dense", compress: bool = False
) -> Path:
    """Write a cut model and its plan into a folder, as `plan.json` and `model.safetensors`, and return the folder's path.

    Call it as `save(result, folder)` with a result of `prune`, `refit`, `merge`, `iterate` or `sparsify`, or, after training by
    `finetune`, `distill` or a loop of your own, as `save(model, plan, folder)`. Tensors that share memory are written once.
    What modules return from `get_extra_state` is saved too: numbers, text, tensors, and lists, tuples and dicts of them. A
    wrapper around the model (`torch.compile`, `DataParallel`, ...) is not part of the checkpoint.

    For a model of transformers whose layers differ after the cut, `per_layer_config.json` says in which fields of the config,
    in the form of transformers' own `config.per_layer_config`, if that can express it; `load` does not read the file.

    Both files are complete on the disk before the first is renamed.

    Args:
        model: the cut model, or a result that has `model` and `plan`.
        plan: the plan that the model was cut by.
        folder: where to; made if absent.
        overwrite: replace a checkpoint that is in the folder.
        format: how weights with zeros are stored, as for `sparsity.save_sparse`: "dense", "coo", "csr", "bitmask" or "block".
            Masks that are attached (see `sparsify`) are not saved, zeros are.
        compress: gzip the file of the weights.

    Raises:
        CheckpointError: the folder has a checkpoint already, the arguments are others, or the model has extra state that can
            not be saved without pickle.
        PlanError: the model was not cut by the plan, or the format is unknown.
        WriteError: a file can not be written; a checkpoint that was there before stays.

    Example:
        >>> import tempfile, torch, bough
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(build(), torch.randn(1, 4), bough.Budget(params="50%"))
        >>> small = result.model  # trained on, in any loop
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = bough.save(small, result.plan, folder)
        ...     bool((bough.load(folder, build)[0].weight == small[0].weight).all())
        True
    """
    check_arguments(save, locals())
    model, plan, folder = pruned_parts(model, plan, folder)
    place = folder_path(folder, "save")
    format_named(format)
    if not overwrite:
        refuse_checkpoint(place)
    inner = without_masks(unwrap(model))
    if not plan.rebuild:
        check_cut_shapes(inner, plan)
    tensors, aliases, extras = _state(inner)
    extra_tensors: dict[str, Tensor] = {}
    packed_extras = {name: packed(value, extra_tensors, (name,)) for name, value in extras.items()}
    stored = storable({**tensors, **extra_tensors})
    contents = {
        "format": FORMAT,
        "version": VERSION,
        "aliases": aliases,
        "tensors": {n: [list(t.shape), str(t.dtype)] for n, t in stored.items()},
        "extras": packed_extras,
        "training": model.training,
        "plan": plan.to_dict(),
    }

    def write_weights(part: Path) -> None:
        if format == "dense" and not compress:
            save_file(stored, part)
        else:
            write_encoded(part, stored, format, compress=compress)
        contents["weights_sha256"] = file_digest(part)

    def write_plan(part: Path) -> None:
        part.write_text(json.dumps({**contents, "checksum": checksum(contents)}), encoding="utf-8")

    make_folder(place)
    forget_pretrained(place, but=(WEIGHTS,))
    write_files([(place / WEIGHTS, write_weights), (place / PLAN, write_plan)])
    if overrides := per_layer_config(inner):
        write_text(place / PER_LAYER, json.dumps(overrides, indent=2) + "\n")
    return place


def load(
    folder: Folder,
    build_model: Callable[[], Any],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """Build the original model, cut it by the saved plan and fill in the saved weights, bit for bit.

    Args:
        folder: as written by `save`.
        build_model: returns a model of the original architecture (its weights do not matter), or (model, example inputs), as
            on the command line.
        example_inputs, dynamic_shapes: as for `rebuild`; needed, and used, only for what `rebuild` made.

    Raises:
        CheckpointError: a file is missing, damaged, truncated, or of another version, or the two do not fit; or the model
            was rebuilt, and no example inputs are given.
        PlanError: `build_model` makes another model than the one that was pruned.

    Example:
        >>> import tempfile, torch, bough
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(build(), torch.randn(1, 4), bough.Budget(params="50%"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = bough.save(result, folder)
        ...     small = bough.load(folder, build)
        >>> torch.equal(small[0].weight, result.model[0].weight)
        True
    """
    check_arguments(load, locals())
    place = folder_path(folder, "load")
    contents = read_contents(place)
    tensors = {} if contents.files is not None else read_weights(place, contents)
    model, inputs = _built(build_model())
    if example_inputs is None:
        example_inputs = inputs
    plan = contents.plan
    if plan.rebuild and example_inputs is None:
        raise CheckpointError(
            f"the model in {place} was made by bough.rebuild: give example_inputs, so that it can be rebuilt, too. (To load "
            "without the original code, save the program: torch.export.save(torch.export.export(small, args), path))"
        )
    model.train(contents.training)
    model = rebuild(model, plan, example_inputs, dynamic_shapes=dynamic_shapes) if plan.rebuild else cut_(model, plan)
    if contents.files is not None:
        tensors = pretrained_tensors(place, contents, unwrap(model))
    _fill(unwrap(model), tensors, contents, place)
    return model.train(contents.training)


def load_plan(folder: Folder) -> Plan:
    """Return the plan of a checkpoint, such as to save the model again after more training.

    Args:
        folder: as written by `save`.

    Raises:
        CheckpointError: there is no checkpoint in the folder, or its plan is damaged.

    Example:
        >>> import tempfile, torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = bough.save(result, folder)
        ...     bough.exporting.load_plan(folder).groups == result.plan.groups
        True
    """
    return read_contents(folder_path(folder, "load_plan")).plan


def refuse_checkpoint(folder: Path) -> None:
    """Check that a folder, which need not exist, has no checkpoint.

    Args:
        folder: that a checkpoint is to be written into.

    Raises:
        CheckpointError: it has one.

    Example:
        >>> from pathlib import Path
        >>> refuse_checkpoint(Path("a-folder-that-does-not-exist"))
    """
    there = [name for name in (PLAN, WEIGHTS) if (folder / name).exists()]
    if there:
        raise CheckpointError(
            f"{folder} has a checkpoint already ({there[0]}): save into another folder, or with bough.save(..., overwrite=True)"
        )


def folder_path(folder: Any, call: str) -> Path:
    """Return a folder's path; raise CheckpointError if it is none."""
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise CheckpointError(f"bough.{call}: folder is {folder!r:.40}, and must be the path of a folder")
    return Path(folder)


def pruned_parts(model: Any, plan: Any, folder: Any) -> tuple[nn.Module, Plan, Any]:
    """Return the model, plan and folder of a call with (result, folder) or (model, plan, folder).

    Raises:
        CheckpointError: the arguments are others.
    """
    if folder is None:
        plan, folder = None, plan
    if plan is None:
        model, plan = _parts(model)
    if not isinstance(model, nn.Module) or not isinstance(plan, Plan):
        wrong = model if not isinstance(model, nn.Module) else plan
        raise CheckpointError(f"nothing to save in a {type(wrong).__name__}: {_CALLS}")
    return model, plan, folder


def _parts(result: Any) -> tuple[Any, Any]:
    if isinstance(result, nn.Module):
        raise CheckpointError(f"bough.save of a model needs its plan and a folder: {_CALLS}")
    if not isinstance(result, Pruned):
        raise CheckpointError(f"a {type(result).__name__} has no model and plan to save: {_CALLS}")
    return result.model, result.plan


def _built(made: Any) -> tuple[nn.Module, Any]:
    """The model, and the example inputs where there are some, that a builder returned."""
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"build_model returned a {type(made).__name__}: it must return a model, or (model, example inputs)"
        )
    return model, inputs


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The tensors of a model's state, {other name of a tensor: its first name}, and what is no parameter or buffer."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    extras: dict[str, Any] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or _is_extra(name):
            extras[name] = value
        elif value.device.type == "meta":
            raise CheckpointError(f"{name} is on the meta device and has no values to save: load or make the weights first")
        elif id(value) in first:
            aliases[name] = first[id(value)]
        else:
            first[id(value)] = name
            tensors[name] = value
    return tensors, aliases, extras


def _is_extra(name: str) -> bool:
    """Whether an entry of a state dict is what a module's `get_extra_state` returned."""
    return name.rpartition(".")[2] == "_extra_state"


def _fill(model: nn.Module, tensors: dict[str, Tensor], contents: Contents, place: Path) -> None:
    """Put saved values into a model that was cut as the saved one was."""
    state = model.state_dict(keep_vars=True)
    extras = {name: unpacked(extra, tensors) for name, extra in contents.extras.items()}
    if contents.weights_sha256 is None:  # version 1 saved extra state that was a tensor among the others, and no other
        extras = {n: tensors.get(n, v) for n, v in state.items() if _is_extra(n) or not isinstance(v, Tensor)}
    inside = tuple(f"{name}/" for name in extras)
    named = {n: t for n, t in tensors.items() if n not in extras and not n.startswith(inside)}
    named |= {alias: tensors[name] for alias, name in contents.aliases.items()}
    values = {**named, **extras}
    for name in sorted(state.keys() | values.keys()):
        if name not in state or name not in values:
            where = "the weights" if name not in values else "the model"
            raise CheckpointError(f"the checkpoint in {place} does not fit: {name} is missing in {where}")
        if name in named and state[name].shape != named[name].shape:
            raise CheckpointError(
                f"the checkpoint in {place} does not fit: {name} has shape {list(named[name].shape)} there and "
                f"{list(state[name].shape)} after the plan's cut"
            )
        if name in named and state[name].device.type == "meta":
            raise CheckpointError(
                f"build_model made {name} on the meta device, where it can have no values: build on a real one"
            )
    with torch.no_grad():
        for name, saved in named.items():
            if state[name].dtype != saved.dtype:
                state[name].data = saved.to(state[name].device)
        try:
            model.load_state_dict(values)
        except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint in {place} does not fit: {str(error).strip().splitlines()[0]}") from error
