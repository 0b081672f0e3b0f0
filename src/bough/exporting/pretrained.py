"""Folders of Hugging Face transformers: a cut model as its stock class loads it, with the plan beside it.

The weights, the config and the generation config are written by the model's own `save_pretrained`; all else that the original's
folder holds (tokenizer, chat template, ...) is copied. `plan.json` has the plan and the sha256 of each of these files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.errors import CheckpointError, PlanError
from bough.exporting.checkpoint import Folder, folder_path, pruned_parts, refuse_checkpoint
from bough.exporting.contents import PLAN, checksum, forget_pretrained, pretrained_contents
from bough.planning import Plan, config_mismatch
from bough.recovery import check_cut_shapes
from bough.storage import file_digest, make_folder, write_text
from bough.storage.atomic import explained, sync
from bough.tracing.capture.wrapped import unwrap

CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
_WRITTEN = (CONFIG, "generation_config.json", PLAN)


def save_pretrained(
    result: Any, plan: Any = None, folder: Any = None, *, source: Folder | None = None, overwrite: bool = False
) -> Path:
    """Write a cut transformers model as a folder that `from_pretrained` of its stock class loads, and return the folder.

    The folder has the weights (safetensors), `config.json`, `generation_config.json`, the files of `source` beside the weights
    (tokenizer, chat template, licence), and `plan.json`, with which `bough.load` loads the folder, too. Call it like
    `bough.save`: `save_pretrained(result, folder)`, or `save_pretrained(model, plan, folder)`.

    Args:
        result: what `prune`, `refit`, `merge` or `iterate` returns, or the cut model.
        plan: the plan that the model was cut by; with a result, the folder.
        folder: where to; made if absent.
        source: the folder that the original was loaded from; None copies no files.
        overwrite: replace a checkpoint that is in the folder.

    Raises:
        PlanError: the config can not express the plan, so that `from_pretrained` would refuse the folder; or the model was not
            cut by the plan.
        CheckpointError: the folder has a checkpoint already, is `source` itself, or the model is not one of transformers.
        WriteError: a file can not be written; a checkpoint that was there before stays.

    Example:
        >>> import tempfile, torch, bough, transformers
        >>> config = transformers.LlamaConfig(
        ...     hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
        >>> model, inputs = transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(50, (1, 5))}
        >>> result = bough.prune(model, inputs, bough.Budget(params="60%"), uniform=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = bough.save_pretrained(result, folder)
        ...     again = transformers.LlamaForCausalLM.from_pretrained(folder)
        >>> bool((again.lm_head.weight == result.model.lm_head.weight).all())
        True
    """
    check_arguments(save_pretrained, locals())
    model, plan, folder = pruned_parts(result, plan, folder)
    place, inner = folder_path(folder, "save_pretrained"), unwrap(model)
    check_pretrained(inner, plan)
    if source is not None and not Path(source).is_dir():
        raise CheckpointError(f"source={str(source)!r} is no folder: give that of the original model, whose files are copied")
    if source is not None and place.resolve() == Path(source).resolve():
        raise CheckpointError(f"{place} is the folder of the original, which is not overwritten: save into another folder")
    if not overwrite:
        refuse_checkpoint(place)
    make_folder(place)
    with tempfile.TemporaryDirectory(dir=place, prefix=".pretrained-") as temporary:
        written = Path(temporary)
        with explained(place):
            inner.save_pretrained(written)  # type: ignore[operator]
        copy_companions(source, written)
        put_in_place(written, place, plan, training=model.training)
    return place


def check_pretrained(model: nn.Module, plan: Plan) -> None:
    """Check that the stock class of a cut model loads what `save_pretrained` of the model writes.

    Args:
        model: of transformers, cut by `plan`.
        plan: that the model was cut by.

    Raises:
        CheckpointError: the model is not one of transformers.
        PlanError: the model was not cut by the plan, or the config can not express what was cut.
    """
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise CheckpointError(
            f"{type(model).__name__} is no model of transformers (it has no save_pretrained): use bough.save and bough.load"
        )
    if not plan.rebuild:
        check_cut_shapes(model, plan)
    why = "it was rebuilt as a program" if plan.rebuild else config_mismatch(model)
    if why is not None:
        raise PlanError(
            f"from_pretrained can not load this plan, because the config can not express it ({type(model).__name__} made from "
            f"its config is another model: {why}). Plan with uniform=True, or keep the model with bough.save and bough.load"
        )


def copy_companions(source: Folder | None, folder: Path) -> list[str]:
    """Copy the files of a model's folder that are neither weights nor written by `save_pretrained`; return their names.

    Hidden files, sub-folders and an index of weights are left out, as are files that `folder` already has.

    Raises:
        WriteError: a file can not be copied.
    """
    if source is None:
        return []
    names = [path.name for path in sorted(Path(source).iterdir()) if is_companion(path) and not (folder / path.name).exists()]
    for name in names:
        with explained(folder / name):
            shutil.copyfile(Path(source) / name, folder / name)
    return names


def is_companion(path: Path) -> bool:
    """Return whether a file of a model's folder goes along with a cut model: the tokenizer does, weights do not."""
    name = path.name
    weights = name.endswith(_WEIGHTS) or name.endswith(".index.json")
    return path.is_file() and not name.startswith(".") and not weights and name not in _WRITTEN


def put_in_place(written: Path, place: Path, plan: Plan, *, training: bool) -> None:
    """Move a complete folder's files into `place`, the config and then the plan last, so that no part looks whole.

    Raises:
        WriteError: a file can not be written or moved.
    """
    names = sorted(p.name for p in written.iterdir())
    for name in names:
        with explained(place / name):
            sync(written / name)
    text = plan_text(plan, {name: file_digest(written / name) for name in names}, training=training)
    forget_pretrained(place, but=names)
    for name in [*(n for n in names if n != CONFIG), CONFIG]:
        with explained(place / name):
            os.replace(written / name, place / name)
    write_text(place / PLAN, text)


def plan_text(plan: Plan, files: Mapping[str, str], *, training: bool) -> str:
    """Return the content of `plan.json` in a folder of transformers. `files`: {name: sha256}."""
    contents = pretrained_contents(plan, files, training=training)
    return json.dumps({**contents, "checksum": checksum(contents)})
