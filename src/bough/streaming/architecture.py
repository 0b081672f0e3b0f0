"""A model of a Hugging Face folder without its weights: the architecture on the meta device, and inputs that fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import CheckpointError, ModelReferenceError, cause

_TOKENS = 16
_META = torch.device("meta")


def example_inputs(model: Any) -> dict[str, Tensor]:
    """Return random inputs that fit a model of transformers, by its config.

    Token ids [1, 16]; spectrograms [1, bins, frames] where they are the main input and the config gives their size, with two
    frames for each position of the encoder (Whisper); pixels [1, channels, side, side] where there is no vocabulary.
    """
    config = model.config
    if hasattr(config, "vocab_size"):
        ids = torch.randint(0, config.vocab_size, (1, _TOKENS))
        given = {"input_ids": ids}
        if getattr(model, "main_input_name", "") == "input_features" and hasattr(config, "num_mel_bins"):
            given = {"input_features": torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)}
        return {**given, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}
    size = getattr(config, "image_size", 224)
    side = size if isinstance(size, int) else size[0]
    return {"pixel_values": torch.randn(1, getattr(config, "num_channels", 3), side, side)}


def architecture(folder: Path) -> nn.Module:
    """Return the model that a folder's `config.json` describes on the meta device, in eval mode.

    Raises:
        ModelReferenceError: transformers is not installed, or can not import the class of the model.
        CheckpointError: there is no config, or it is of no class that transformers knows.
    """
    try:
        import transformers
    except ImportError:
        raise ModelReferenceError("a folder of Hugging Face needs transformers: pip install 'bough[hf]'") from None
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no folder of a model: there is no config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} can not be read: {error}") from error
    names = config.architectures or []
    try:
        known: Any = getattr(transformers, names[0], None) if names else transformers.AutoModel
    except ImportError as error:  # of what its module imports
        raise ModelReferenceError(f"{folder}: transformers can not import {names[0]} here ({cause(error)})") from error
    if known is None:
        raise CheckpointError(f"{folder / 'config.json'} is of {names[0]}, which transformers {transformers.__version__} lacks")
    build = known._from_config if names else known.from_config
    with _META:
        model: nn.Module = build(config, dtype=config.dtype or torch.float32)
    return model.eval()
