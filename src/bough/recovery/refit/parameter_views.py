"""Views of parameters that are found again after the parameter's memory was replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ParameterView:
    """A strided view of a parameter, without a reference to the memory that the parameter had when the view was made.

    Attributes:
        parameter: the parameter.
        size, stride, offset: of the view, in elements of the parameter's storage.
    """

    parameter: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def tensor(self) -> Tensor:
        """The view of the parameter's present memory."""
        return self.parameter.detach().as_strided(self.size, self.stride, self.offset)

    @property
    def is_expanded(self) -> bool:
        """Whether elements of the view share memory."""
        return any(s == 0 and n > 1 for s, n in zip(self.stride, self.size, strict=True))


def view_of(tensor: Tensor, parameters: Iterable[Tensor]) -> ParameterView | None:
    """Return a tensor as a view of the one among the parameters whose memory it shares; None if it shares none."""
    storage = tensor.untyped_storage()._cdata
    for parameter in parameters:
        if parameter.untyped_storage()._cdata == storage:
            return ParameterView(parameter, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
    return None
