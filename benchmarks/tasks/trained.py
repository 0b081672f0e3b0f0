"""Weights that the benchmarks train themselves, once: kept in a folder with the settings that they were trained by."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bough.recovery import Training

FOLDER = Path(".tasks")
RECIPE: dict[str, Any] = {  # spelled out: bough's defaults may change, and these weights should not
    "epochs": 1, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.02, "momentum": 0.9, "schedule": "cosine", "warmup": 0.1,
    "batch_size": 64, "accumulate": 1, "clip": None, "precision": "no", "seed": 0,
}  # fmt: skip


def recipe(**options: Any) -> Training:
    """Options of a training run, RECIPE where they are not given; a state is saved every 200 steps."""
    return Training(**RECIPE | options, save_every=200)


def settings_of(training: Training, **more: Any) -> dict[str, Any]:
    """The options of `recipe`, and what else decides the weights."""
    return {"training": {name: getattr(training, name) for name in RECIPE}, **more}


def trained(
    name: str, build: Callable[[], nn.Module], train: Callable[[nn.Module, Path], object], settings: Mapping[str, Any]
) -> nn.Module:
    """Return `build()` with the weights of FOLDER/NAME.safetensors, in eval mode; train and save them if they are absent.

    Weights that were trained by other settings, as FOLDER/NAME.json says, are trained again.

    Args:
        train: (model, folder for the states of the run) trains in place; a killed run is resumed from that folder.
        settings: all that decides the weights, as plain values.
    """
    weights, record = FOLDER / f"{name}.safetensors", FOLDER / f"{name}.json"
    wanted = json.loads(json.dumps(settings))
    torch.manual_seed(0)
    model = build()
    if weights.exists() and record.exists() and json.loads(record.read_text())["settings"] == wanted:
        model.load_state_dict(load_file(weights))
        return model.eval()
    FOLDER.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    train(model, FOLDER / "runs" / name)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    record.write_text(
        json.dumps({"settings": wanted, "minutes": round((time.perf_counter() - begin) / 60, 1)}, indent=1) + "\n"
    )
    return model.eval()
