"""What became of each parameter: the notes that `cut` and `cut_` leave for `transfer_optimizer`.

The notes are kept beside the parameters, not on them, and go when the parameters go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from bough.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Passage:
    """A parameter's way through a cut: its names before and after, by which plan, and what it became.

    `after` is "" and `became` None where the parameter's layer was left out.
    """

    plan: Plan
    before: str
    after: str
    became: TensorWeakRef | None

    def target(self) -> Tensor | None:
        """The parameter it became; None where it is gone."""
        return None if self.became is None else self.became()


_PASSAGES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def note(plan: Plan, small: nn.Module, moved: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """Notes for each (name, parameter before, parameter after) its way into `small`."""
    names = {id(p): n for n, p in small.named_parameters()}
    for before, old, new in moved:
        after = names.get(id(new), "")
        _PASSAGES[old] = Passage(plan, before, after, TensorWeakRef(new) if after else None)


def passage(parameter: Tensor) -> Passage | None:
    """The last cut that a parameter went through; None where there was none."""
    found: Passage | None = _PASSAGES.get(parameter)
    return found
