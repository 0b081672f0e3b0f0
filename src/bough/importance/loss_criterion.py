"""Base of criteria that need a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bough.arguments import check_fields
from bough.calibration import Loss


@dataclass(frozen=True, slots=True)
class LossCriterion:
    """A criterion with a loss as its first argument.

    Attributes:
        loss: mean over a batch, see `bough.calibration.losses`.

    Raises:
        ArgumentError: an argument of another type.
    """

    loss: Loss
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
