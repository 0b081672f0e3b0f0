"""How a regularizer joins a training loop: by the optimizer's own hooks, so any loop will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


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
