"""`Extracted`: a subnet as an ordinary plan and an ordinary model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bough.calibration import Data
from bough.planning import Plan
from bough.recovery import recalibrate
from bough.supernet.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Extracted:
    """What `Supernet.extract` returns; `bough.save` takes it.

    Attributes:
        model: an ordinary module, with weights of its own.
        plan: of the supernet's model (`Supernet.model`), and of every model of the same architecture.
        subnet: its widths and layers.
    """

    model: nn.Module
    plan: Plan
    subnet: Subnet

    def to_dict(self) -> dict[str, Any]:
        """Return widths, layers and costs as plain data, for JSON."""
        return {**self.subnet.to_dict(), "cost": self.plan.cost.to_dict(), "original": self.plan.original.to_dict()}

    def __str__(self) -> str:
        return str(self.plan)


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether a model has batch norms with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def recalibrated(model: nn.Module, data: Data | None) -> nn.Module:
    """Return a model, the statistics of whose batch norms have been set to those on `data`, in place, if there are both."""
    return recalibrate(model, data) if data is not None and has_batch_statistics(model) else model
