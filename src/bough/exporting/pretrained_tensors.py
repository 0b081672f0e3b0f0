"""The tensors of a folder of Hugging Face transformers, as the model's class loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bough.errors import CheckpointError
from bough.exporting.contents import PLAN, Contents
from bough.storage import file_digest


def pretrained_tensors(place: Path, contents: Contents, model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the class of `model` loads from a folder written by `save_pretrained`.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not one of transformers.
    """
    check_files(place, contents.files or {})
    load = getattr(type(model), "from_pretrained", None)
    if load is None:
        raise CheckpointError(f"{place} was written by save_pretrained, and {type(model).__name__} is no model of transformers")
    try:
        loaded: nn.Module = load(place, dtype="auto", local_files_only=True)
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(f"{place} can not be loaded: {type(error).__name__}: {error}") from error
    return dict(loaded.state_dict())


def check_files(place: Path, files: Mapping[str, str]) -> None:
    """Raise CheckpointError if one of the files is missing, or has another sha256 than given."""
    for name, digest in files.items():
        path = place / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, and belongs to the checkpoint")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} is damaged, or of another checkpoint: its sha256 is not the one in {PLAN}")
