"""accelerate, for the length of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from bough.errors import TrainingError
from bough.recovery.training import Training


class Accelerator(Protocol):
    """What is used of an `accelerate.Accelerator`, which is imported only when it is needed."""

    device: Any

    def prepare(self, *objects: Any) -> Any: ...

    def backward(self, loss: Any) -> None: ...

    def accumulate(self, *models: Any) -> Any: ...


_PREPARED = "_is_accelerate_prepared"


@contextmanager
def prepared_anew(model: nn.Module, given: Any = None) -> Iterator[None]:
    """Without the mark that accelerate leaves on a model, by which it would leave it alone: on one device, in full precision.

    It is there after earlier training, also in copies of the model. With an accelerator that was given it may hold: then only
    what the run adds is taken off.
    """
    before = vars(model).get(_PREPARED)
    if given is None:
        vars(model).pop(_PREPARED, None)
    try:
        yield
    finally:
        vars(model).pop(_PREPARED, None)
        if before is not None:
            vars(model)[_PREPARED] = before


@contextmanager
def accelerating(training: Training, given: Any = None) -> Iterator[Any]:
    """The accelerator that was given, or one made for `training`.

    accelerate holds one precision for the whole process; it is given back at the end, and the next run may have another.

    Raises:
        TrainingError: accelerate is absent, already started with another precision, or set to share models out in parts.
    """
    if given is not None:
        yield given
        return
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, is_initialized
        from accelerate.utils import DataLoaderConfiguration
    except ImportError:
        raise TrainingError("training needs accelerate: pip install 'bough[train]'") from None
    others = is_initialized()
    try:
        try:
            made = Accelerator(
                mixed_precision=training.precision, gradient_accumulation_steps=training.accumulate,
                dataloader_config=DataLoaderConfiguration(split_batches=int(os.environ.get("WORLD_SIZE", "1")) > 1),
            )  # fmt: skip
        except ValueError as error:
            raise TrainingError(
                f"accelerate was started otherwise in this process: {error} Or give your own accelerator="
            ) from None
        kind = made.distributed_type.value
        if any(sharded in kind for sharded in ("FSDP", "DEEPSPEED", "MEGATRON")):
            raise TrainingError(
                f"accelerate is set to {kind}: finetune keeps a whole model in each process; use MULTI_GPU or NO"
            )
        yield made
    finally:
        if not others:
            AcceleratorState._reset_state()
