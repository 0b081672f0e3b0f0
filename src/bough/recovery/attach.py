"""How a regularizer joins a training loop: by the optimizer's own hooks, so any loop will do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bough.errors import ArgumentError, TrainingError


@dataclass(frozen=True, slots=True)
class Attachment:
    """A regularizer at an optimizer; `remove()` takes it off."""

    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class Regularizer(Protocol):
    """What acts on a model before or after each step of its optimizer, and can be saved and resumed.

    One that works towards something has `settled`: whether it is there. Epochs before are never the best ones.
    """

    def attach(self, optimizer: Optimizer) -> Attachment: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_holds(optimizer: Optimizer, parameters: Iterable[Tensor], trained: str) -> None:
    """Raise TrainingError if an optimizer holds none of `parameters`, those of `trained`: its steps would change nothing.

    A cut makes new parameters, so an optimizer of the original model goes on training that one.
    """
    if not isinstance(getattr(innermost(optimizer), "param_groups", None), list):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}: give one such as torch.optim.AdamW(model.parameters())"
        )
    held = {id(p) for group in innermost(optimizer).param_groups for p in group["params"]}
    if not any(id(p) in held for p in parameters):
        raise TrainingError(
            f"the optimizer ({type(optimizer).__name__}) holds no parameter of {trained}, so it would train nothing: carry the "
            "one of the original model over with bough.transfer_optimizer(optimizer, plan), or make one of its own parameters"
        )


def before_each_step(optimizer: Optimizer, act: Any) -> Attachment:
    """Calls `act()` before each step, when the gradients are there (and clipped)."""
    return Attachment((innermost(optimizer).register_step_pre_hook(lambda *_: act()),))


def after_each_step(optimizer: Optimizer, act: Any) -> Attachment:
    """Calls `act(optimizer)` after each step."""
    return Attachment((innermost(optimizer).register_step_post_hook(lambda made, *_: act(made)),))


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside wrappers such as accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    found: Optimizer = optimizer
    return found


def together(attachments: Sequence[Attachment]) -> Attachment:
    """Several as one."""
    return Attachment(tuple(h for a in attachments for h in a.handles))
