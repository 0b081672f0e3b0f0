"""Files of a training run's state: whole in one file, or sharded by torch.distributed.checkpoint beside a small file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bough.recovery.training.model_state import full_state, load_full_state
from bough.recovery.training.optimizer_hooks import unwrap_optimizer
from bough.storage import write_state


class StateFiles:
    """Files with the weights and, if asked for, the state of the optimizer; the main process writes them.

    Args:
        model: whose weights are written and loaded.
        optimizer: as the accelerator has prepared it.
        accelerator: of the run.
    """

    def __init__(self, model: nn.Module, optimizer: Any, accelerator: Any) -> None:
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator
        self._folders: dict[str, str] = {}  # of shards, by the name of the file that names them

    def after_evaluation(self) -> None:
        """Bring the model back to the state that is written, after a forward pass without a backward pass."""

    def write(self, path: Path, step: int, extra: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write the state at a step; a state that was there before is replaced once the new one is complete.

        Args:
            path: of the file.
            step: number of optimizer steps until now.
            extra: plain data that is kept beside the weights.
            optimizer: whether the state of the optimizer is written.
        """
        if self.accelerator.is_main_process:
            more = {"optimizer": self.optimizer.state_dict()} if optimizer else {}
            write_state(path, {"model": full_state(self.model), **more, **extra})

    def load(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Load the weights and the state of the optimizer.

        Args:
            path: of the file.
            state: what `read_state(path)` returned.
            optimizer: whether the state of the optimizer is loaded.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: the state is of another model or optimizer.
        """
        load_full_state(self.model, state["model"])
        if optimizer:
            self.optimizer.load_state_dict(state["optimizer"])


class ShardedStateFiles(StateFiles):
    """Files of a model that is sharded by FSDP2: every process writes its shards into a folder, which the file names.

    Two folders take turns, so that the one that the file names stays until the next is complete.
    """

    def after_evaluation(self) -> None:
        """Free the whole parameters that FSDP2 keeps after a forward pass, as a backward pass would."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def write(self, path: Path, step: int, extra: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write the shards of all processes and then, in the main process, the file; see `StateFiles.write`."""
        from torch.distributed.checkpoint.state_dict_saver import save

        current, main = self._folders.get(path.name), self.accelerator.is_main_process
        folder = path.with_name(next(n for n in (f"{path.name}.shards", f"{path.name}.shards2") if n != current))
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        self.accelerator.wait_for_everyone()
        save(self._sharded(optimizer), checkpoint_id=folder)
        self.accelerator.wait_for_everyone()
        if main:
            buffers = {n: b for n, b in self.model.named_buffers() if n not in self.model.state_dict()}
            write_state(path, {"shards": folder.name, "buffers": buffers, **extra})
            if current is not None:
                shutil.rmtree(path.with_name(current))
        self._folders[path.name] = folder.name
        self.accelerator.wait_for_everyone()

    def load(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Load the shards of this process; see `StateFiles.load`."""
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        self._folders[path.name] = state["shards"]
        sharded = self._sharded(optimizer)
        load(sharded, checkpoint_id=path.with_name(state["shards"]))
        set_model_state_dict(self.model, sharded["model"])
        if optimizer:
            set_optimizer_state_dict(self.model, self._inner, sharded["optimizer"])
        buffers = dict(self.model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)

    def _sharded(self, optimizer: bool) -> dict[str, Any]:
        """Return the state dicts of this process."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        more = {"optimizer": get_optimizer_state_dict(self.model, self._inner)} if optimizer else {}
        return {"model": get_model_state_dict(self.model), **more}

    @property
    def _inner(self) -> Optimizer:
        return unwrap_optimizer(self.optimizer)


def state_files(model: nn.Module, optimizer: Any, accelerator: Any) -> StateFiles:
    """Return the files of a run's state, as the accelerator keeps the model."""
    return (ShardedStateFiles if is_sharding(accelerator) else StateFiles)(model, optimizer, accelerator)


def is_sharding(accelerator: Any) -> bool:
    """Return whether an accelerator shards models by FSDP2."""
    return bool(getattr(accelerator, "is_fsdp2", False))
