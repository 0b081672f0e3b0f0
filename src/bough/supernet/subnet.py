"""`Subnet`: the widths and layers of one network within a supernet, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bough.arguments import check_fields
from bough.errors import PlanError


@dataclass(frozen=True, slots=True)
class Subnet:
    """One network within a supernet.

    Attributes:
        counts: {group: units kept, the most important ones}, for each group that the subnet has.
        dropped: names of the layers that are left out.

    Raises:
        ArgumentError: an attribute of another type.

    Example:
        >>> Subnet({"fc1": 16}) == Subnet.from_dict(Subnet({"fc1": 16}).to_dict())
        True
    """

    counts: Mapping[str, int]
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def key(self) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """A hashable form, the same for equal subnets."""
        return tuple(sorted(self.counts.items())), tuple(sorted(self.dropped))

    def to_dict(self) -> dict[str, Any]:
        """Return the subnet as plain data, for JSON."""
        return {"counts": dict(self.counts), "dropped": list(self.dropped)}

    @staticmethod
    def from_dict(data: Any) -> Subnet:
        """Return the subnet of which `to_dict` made plain data.

        Raises:
            PlanError: the data is not that of a subnet.
        """
        counts, dropped = (data.get("counts"), data.get("dropped", [])) if isinstance(data, Mapping) else (None, [])
        if not isinstance(counts, Mapping) or not all(isinstance(k, str) and type(n) is int for k, n in counts.items()):
            raise PlanError("a subnet is written as {'counts': {group: units}, 'dropped': [layers]}")
        if not isinstance(dropped, (list, tuple)) or not all(isinstance(name, str) for name in dropped):
            raise PlanError("the dropped layers of a subnet are a list of names")
        return Subnet(dict(counts), tuple(dropped))
