"""Attributes that equal a width which is cut, and that the cut leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bough.tracing.capture.provenance import path_of

_SHOWN = 10
_SIZES = 3  # sizes and methods shown of each


@dataclass(frozen=True, slots=True)
class Stale:
    """An integer attribute whose value is the width of an axis that is cut.

    Attributes:
        key: "module:attribute:key...", as in `Plan.attributes`.
        value: of the attribute, before and after the cut.
        sizes: of the axes of that size after the cut, ascending, if it is not known which of them is meant.
        methods: the methods of the module's class that read the attribute.
    """

    key: str
    value: int
    sizes: tuple[int, ...]
    methods: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The attribute as Python reads it, such as "blocks.0.config['width']"."""
        module, attribute, *keys = path_of(self.key)
        inner = "".join(f"[{k}]" if k.isdigit() else f".{k}" for k in keys)
        return f"{module}.{attribute}{inner}" if module else f"{attribute}{inner}"

    def __str__(self) -> str:
        sizes = [str(n) for n in self.sizes[:_SIZES]] + (["..."] if len(self.sizes) > _SIZES else [])
        now = f"the axis now has {' or '.join(sizes)}" if sizes else "the axis was cut"
        read = f" (read by {', '.join(self.methods[:_SIZES])})" if self.methods else ""
        return f"{self.name} = {self.value}, {now}{read}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"attribute": self.name, "value": self.value, "sizes": list(self.sizes), "methods": list(self.methods)}


def stale_lines(stale: Sequence[Stale]) -> list[str]:
    """Return what is printed of stale attributes: their number, and the first ten."""
    if not stale:
        return []
    many = f"{len(stale)} attributes keep" if len(stale) > 1 else "1 attribute keeps"
    head = f"stale: {many} the size that a cut axis had; forward does not read it, methods that do may fail"
    more = [f"stale: and {len(stale) - _SHOWN} more, see plan.stale"] if len(stale) > _SHOWN else []
    return [head, *(f"stale: {s}" for s in stale[:_SHOWN]), *more]
