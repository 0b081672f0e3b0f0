"""Running sums of a pass over data, and the file from which an interrupted pass continues."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bough.errors import CheckpointError
from bough.storage import make_folder, read_state, write_state

SAMPLES = "#samples"
"""Key under which `Sums` counts samples."""


class Sums(dict[str, Tensor]):
    """Running sums by name, float64 unless stated otherwise.

    Attributes:
        constants: names of values that are set once and are no sums, such as weights.
        batch: number of the batch that is being summed; of several processes, batch i of process r is i * processes + r.

    Example:
        >>> sums = Sums()
        >>> sums.plus("loss", 1.5)
        >>> sums.plus("loss", 2.0)
        >>> float(sums["loss"])
        3.5
    """

    def __init__(self) -> None:
        super().__init__()
        self.constants: set[str] = set()
        self.batch = 0

    def plus(self, name: str, value: Tensor | float, dtype: torch.dtype = torch.float64) -> None:
        """Add `value` to the sum `name`, which is stored in `dtype` on the device of the last value."""
        term = torch.as_tensor(value).detach().to(dtype)
        self[name] = self[name].to(term.device) + term if name in self else term.clone()

    def keep(self, name: str, value: Tensor) -> None:
        """Set a value that is no sum, float64; all batches and processes give the same."""
        if name not in self:
            self[name] = value.detach().to(torch.float64, copy=True)
            self.constants.add(name)

    @property
    def samples(self) -> float:
        """Number of samples that the pass has seen."""
        return float(self[SAMPLES])


def save_sums(file: Path, sums: Sums, model: nn.Module, batches_done: int) -> None:
    """Write the sums and the number of batches that they cover.

    Each sum is stored with the name of a parameter on the same device, because the machine that resumes the pass may number
    its devices differently or lack some.
    """
    parameter_on = {p.device: name for name, p in model.named_parameters()}
    beside = {key: parameter_on[value.device] for key, value in sums.items() if value.device in parameter_on}
    make_folder(file.parent)
    constants = sorted(sums.constants)
    write_state(file, {"done": batches_done, "sums": dict(sums), "beside": beside, "constants": constants})


def load_sums(file: Path, sums: Sums, model: nn.Module) -> int:
    """Read the sums of an interrupted pass into `sums`, each onto the device of its parameter.

    Returns:
        The number of batches that the sums cover; 0 if there is no file.

    Raises:
        CheckpointError: the file holds no running sums of this model.
    """
    if not file.exists():
        return 0
    saved, parameters = read_state(file), dict(model.named_parameters())
    try:
        for key, value in saved["sums"].items():
            name = saved["beside"].get(key)
            sums[key] = value if name is None else value.to(parameters[name].device)
        sums.constants.update(saved["constants"])
        return int(saved["done"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} has no running sums of this model ({error}): delete it, and the pass begins again"
        ) from None
