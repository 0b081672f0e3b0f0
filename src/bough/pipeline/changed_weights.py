"""Stages that change a model's weights and nothing else, and the file that these lie in."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bough.errors import CheckpointError
from bough.pipeline.stage import Shared, State
from bough.recovery.training import full_state, load_full_state
from bough.storage import read_state, write_state

_WEIGHTS = "weights.safetensors"


class ChangesWeights:
    """The part of a stage that keeps all weights and buffers of the model in the stage's folder."""

    __slots__ = ()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write all weights and buffers of a model."""
        write_state(folder / _WEIGHTS, {"model": full_state(model)})

    def restore(self, state: State, shared: Shared, folder: Path) -> State:
        """Load the weights that `save` wrote.

        Raises:
            CheckpointError: the file is damaged, or of another model.
        """
        try:
            load_full_state(state.model, read_state(folder / _WEIGHTS)["model"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder / _WEIGHTS} does not fit the model: {str(error).splitlines()[0]}") from None
        return state

    def outputs(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """Return the file of the weights."""
        return (folder / _WEIGHTS,)
