"""Costs beyond those that shapes alone give: bytes at a precision, seconds by a table, joules by constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bough.cost.copies import copied
from bough.cost.energy import EnergyModel
from bough.cost.flash import FLASH_PRECISION, flash_constants
from bough.cost.precision import precision, stored
from bough.graph import ClosedForm, Graph, Part, activation_parts, closed_form


class LatencyModel(Protocol):
    """Predicts latency: a `bough.LatencyTable`."""

    @property
    def source(self) -> str: ...

    def part(self, graph: Graph) -> Part:
        """Return the latency as a function of the groups' counts."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The costs that are computed besides parameters, MACs and bytes.

    Attributes:
        precision: see `PRECISIONS`; adds the bytes stored, and counts activations at that precision.
        table: adds the latency.
        energy: adds the energy.
        flash: adds the constants of the C export for microcontrollers.
    """

    precision: str | None = None
    table: LatencyModel | None = None
    energy: EnergyModel | None = None
    flash: bool = False

    def form(self, graph: Graph) -> ClosedForm:
        """Return the closed form of a graph's costs, these costs included."""
        parts: dict[str, Part] = {}
        if self.precision is not None:
            parts["stored"] = stored(graph, self.precision)
            copies = copied(graph) if self.precision == FLASH_PRECISION else []
            parts |= activation_parts(graph, precision(self.precision).element, copies)
        if self.table is not None:
            parts["latency"] = self.table.part(graph)
        if self.energy is not None:
            parts["energy"] = self.energy.part(graph)
        if self.flash:
            parts["flash"] = flash_constants(graph)
        return closed_form(graph).extended(parts)

    def notes(self) -> tuple[str, ...]:
        """Return a line per cost that says where its numbers come from."""
        found = []
        if self.precision is not None:
            found.append(f"stored, activation_bytes, peak_memory: bytes at {self.precision}")
            if self.precision == FLASH_PRECISION:
                found.append(
                    "peak_memory: with the copies that the C export makes; an upper bound of its arena unless axes are permuted"
                )
        if self.table is not None:
            found.append(f"latency: {self.table.source}")
        if self.energy is not None:
            found.append(f"energy: {self.energy.source}")
        if self.flash:
            found.append("flash: bytes of constants of the int8 C export; code and start-up files are not counted")
        return tuple(found)
