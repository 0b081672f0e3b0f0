"""What became of each parameter: the notes that `cut` and `cut_` leave for `transfer_optimizer`.

The notes are kept beside the parameters, not on them, and go when the parameters go.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from bough.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class ParameterHistory:
    """What a cut made of a parameter: its names before and after, by which plan, and what it became.

    `after` is "" and `became` None where the parameter's layer was left out; `into` is the cut model.
    """

    plan: Plan
    before: str
    after: str
    became: TensorWeakRef | None
    into: weakref.ref[nn.Module]

    def alive(self) -> bool:
        """Whether what came out of the cut is still in use."""
        return (self.target() if self.after else self.into()) is not None

    def target(self) -> Tensor | None:
        """The parameter it became; None where it is gone."""
        return None if self.became is None else self.became()


_HISTORIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def note(plan: Plan, small: nn.Module, moved: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """Notes for each (name, parameter before, parameter after) its way into `small`.

    Of several copies cut from one model all that are alive stay known; a cut in place ends what was noted before, as the
    parameter is no longer what the earlier plans were made for.
    """
    names = {id(p): n for n, p in small.named_parameters()}
    into = weakref.ref(small)
    for before, old, new in moved:
        after = names.get(id(new), "")
        earlier = [] if old is new else [p for p in histories(old) if p.alive()]
        _HISTORIES[old] = [*earlier, ParameterHistory(plan, before, after, TensorWeakRef(new) if after else None, into)]


def histories(parameter: Tensor) -> list[ParameterHistory]:
    """A parameter's ways through cuts, the last one last."""
    found: list[ParameterHistory] = _HISTORIES.get(parameter, [])
    return found
