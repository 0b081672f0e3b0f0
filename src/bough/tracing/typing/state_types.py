"""Types of what a model keeps from one call to the next.

A place that `forward` assigns again (`self.prev = y.detach()`) has the same kind of value after a call as before: `bind_state`
gives both the same types, so that a cut changes the width of the stored tensor with that of the tensors stored there later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bough.ops import Reason
from bough.spaces import freeze
from bough.tracing.typing.recorder import Recorder


def bind_state(recorder: Recorder, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Give what a place held before a recorded call and what it holds afterwards the same types, wherever these differ.

    Axes whose sizes changed are frozen: the size depends on more than the widths of layers.

    Returns:
        The names of the places that hold another tensor afterwards.
    """
    tensors = {n: t for n, t in before.items() if isinstance(t, Tensor)}
    changed = [n for n, t in after.items() if isinstance(t, Tensor) and n in tensors and tensors[n] is not t]
    for name in changed:
        old, new = (recorder.typing(recorder.owned(t)).axes for t in (before[name], after[name]))
        reason = Reason(f"forward gives {name} another shape")
        if len(old) != len(new):
            for axis in (*old, *new):
                freeze(axis, reason)
            continue
        for a, b in zip(old, new, strict=True):
            if a.size == b.size:
                recorder.context.unify(a, b)
            else:
                freeze(a, reason)
                freeze(b, reason)
    return changed
