"""Optimizer hooks by which regularizers take part in any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bough.errors import ArgumentError, TrainingError


@dataclass(frozen=True, slots=True)
class Attachment:
    """The hooks of a regularizer on an optimizer; `remove()` detaches the regularizer."""

    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self.handles:
            handle.remove()


class Regularizer(Protocol):
    """An object that changes gradients or parameters before or after each optimizer step, and can be saved and resumed.

    A regularizer with a goal has the attribute `settled`: whether the goal is reached. Until then no epoch counts as the best.
    """

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Register the regularizer's hooks on an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


def check_optimizer(optimizer: Optimizer, parameters: Iterable[Tensor], owner: str) -> None:
    """Check that an optimizer has at least one of `parameters`; otherwise its steps would change nothing.

    A cut creates new parameters, so an optimizer of the original model keeps training the original model.

    Args:
        optimizer: may be wrapped, as by accelerate.
        parameters: of the model that is to be trained.
        owner: name of that model in the message.

    Raises:
        ArgumentError: `optimizer` is not an optimizer.
        TrainingError: the optimizer has none of the parameters.
    """
    if not isinstance(getattr(unwrap_optimizer(optimizer), "param_groups", None), list):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}: give one such as torch.optim.AdamW(model.parameters())"
        )
    optimized = {id(p) for group in unwrap_optimizer(optimizer).param_groups for p in group["params"]}
    if not any(id(p) in optimized for p in parameters):
        raise TrainingError(
            f"the optimizer ({type(optimizer).__name__}) holds no parameter of {owner}, so it would train nothing: carry the "
            "one of the original model over with bough.transfer_optimizer(optimizer, plan), or make one of its own parameters"
        )


def hook_before_step(optimizer: Optimizer, act: Callable[[], object]) -> Attachment:
    """Call `act()` before each step of an optimizer, after gradients have been computed and clipped."""
    return Attachment((unwrap_optimizer(optimizer).register_step_pre_hook(lambda *_: act()),))  # type: ignore[arg-type,func-returns-value]


def hook_after_step(optimizer: Optimizer, act: Callable[[Optimizer], object]) -> Attachment:
    """Call `act(optimizer)` after each step of an optimizer."""
    return Attachment((unwrap_optimizer(optimizer).register_step_post_hook(lambda stepped, *_: act(stepped)),))  # type: ignore[arg-type,return-value]


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer inside wrappers such as accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    innermost: Optimizer = optimizer
    return innermost


def combine_attachments(attachments: Sequence[Attachment]) -> Attachment:
    """Return one attachment with the hooks of several."""
    return Attachment(tuple(handle for a in attachments for handle in a.handles))
