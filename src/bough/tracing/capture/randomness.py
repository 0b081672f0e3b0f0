"""Random numbers of recorded runs: the same in every run, whatever was drawn before.

Models that draw in training whether a layer is skipped (LayerDrop, stochastic depth) take another path in each run. A
recorded run and its replays must take the same one, and rather one that runs the layers: so their generators have a fixed
seed, and single numbers, of which such decisions are made, come out alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bough.ops import spec

HIGH, LOW = 1 - 2**-8, 2**-8
"""Draws from [0, 1) near its ends, exact in every float type. Below the probability to skip, mostly, is only the lower."""


@contextmanager
def unchanged_rng() -> Iterator[None]:
    """Leave the random number generators of torch, numpy and Python as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def fixed_rng() -> Iterator[None]:
    """Draw from generators of a fixed seed, and leave them as they were."""
    with unchanged_rng():
        torch.default_generator.manual_seed(0)
        for generator in torch.cuda.default_generators if torch.cuda.is_initialized() else ():
            generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield


def draws_one(name: str, result: Any) -> bool:
    """Whether an op draws a single number between 0 and 1, or an event of some probability."""
    return spec(name.rstrip("_")).draws and isinstance(result, Tensor) and result.numel() == 1 and not result.is_meta


def as_drawn(name: str, args: tuple[Any, ...], result: Tensor, draw: float) -> Tensor:
    """Make the result of an op that `draws_one` what comes of `draw` in [0, 1)."""
    if name.rstrip("_") == "bernoulli":
        given = args[1] if len(args) > 1 and name.endswith("_") else args[0]
        return result.fill_(float(draw < float(given)))
    low, high = (*args[1:3], 0.0, 1.0)[:2] if name == "uniform_" and len(args) > 2 else (0.0, 1.0)
    return result.fill_(low + (high - low) * draw)
