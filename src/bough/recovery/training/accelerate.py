"""Accelerators of the library accelerate, for the duration of one training run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bough.errors import TrainingError
from bough.recovery.training.options import Training


class Accelerator(Protocol):
    """The part of `accelerate.Accelerator` that is used; accelerate itself is imported only by a run."""

    device: torch.device

    def prepare(self, *objects: Any) -> Any:
        """Return models, optimizers and loaders adapted to the devices and processes."""

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss."""

    def accumulate(self, *models: nn.Module) -> AbstractContextManager[Any]:
        """Accumulate gradients over several batches."""


_PREPARED = "_is_accelerate_prepared"


@contextmanager
def unprepared(model: nn.Module, accelerator: Accelerator | None = None) -> Iterator[None]:
    """Remove the mark of a prepared model that earlier training left, also on copies; restore the mark on exit.

    accelerate would not prepare a marked model again: the model would stay on one device, in full precision. The mark is kept
    if the user gives an accelerator, which may have prepared the model.
    """
    before = vars(model).get(_PREPARED)
    if accelerator is None:
        vars(model).pop(_PREPARED, None)
    try:
        yield
    finally:
        vars(model).pop(_PREPARED, None)
        if before is not None:
            vars(model)[_PREPARED] = before


def require_accelerate() -> None:
    """Raise a TrainingError unless accelerate is installed."""
    if find_spec("accelerate") is None:
        raise TrainingError("training needs accelerate: pip install 'bough[train]'")


@contextmanager
def open_accelerator(training: Training, accelerator: Accelerator | None = None) -> Iterator[Any]:
    """Yield the user's accelerator, or a new one for `training`.

    accelerate has one precision per process; it is reset on exit, so the next run may use another.

    Raises:
        TrainingError: accelerate is not installed, was started with another precision, or is set to shard models.
    """
    if accelerator is not None:
        yield accelerator
        return
    require_accelerate()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DataLoaderConfiguration

    in_use = is_initialized()
    try:
        try:
            created = Accelerator(
                mixed_precision=training.precision, gradient_accumulation_steps=training.accumulate,
                dataloader_config=DataLoaderConfiguration(split_batches=int(os.environ.get("WORLD_SIZE", "1")) > 1),
            )  # fmt: skip
        except ValueError as error:
            raise TrainingError(
                f"accelerate was started otherwise in this process: {error} Or give your own accelerator="
            ) from None
        kind = created.distributed_type.value
        if not created.is_fsdp2 and any(sharded in kind for sharded in ("FSDP", "DEEPSPEED", "MEGATRON")):
            raise TrainingError(
                f"accelerate is set to {kind}: finetune shards a model by FSDP2 alone, or keeps it whole in each process; use "
                "FSDP with fsdp_version 2, MULTI_GPU or NO"
            )
        yield created
    finally:
        if not in_use:
            AcceleratorState._reset_state()
