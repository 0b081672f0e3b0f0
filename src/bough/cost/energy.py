"""Energy by operations and traffic: joules per MAC and per byte moved.

    E = scale x (MACs x mac + bytes of weights read x weight_byte + bytes of activations read and written x activation_byte)

The constants are those of Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for a 45 nm
process: a MAC is a multiplication and an addition (fp32 3.7 + 0.9 pJ, fp16 1.1 + 0.4 pJ, int8 0.2 pJ + 0.1 pJ for an
int32 addition), a word of 64 bit costs 1.3 nJ from DRAM (the lower end) and 100 pJ from 1 MB of cache. Assumed is that
each op reads its weights from DRAM and its activations from that cache, and that nothing is drawn while idle. So the
numbers compare models; for joules of a machine at hand, calibrate (`bough.measuring.calibrate`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.arguments import check_arguments, check_fields
from bough.cost.precision import precision
from bough.cost.traffic import activations, moving, weights
from bough.graph import Graph, Polynomials, total
from bough.spaces import Space

_PICO = 1e-12
_MAC = {"float32": 4.6, "float16": 1.5, "bfloat16": 1.5, "int8": 0.3, "int4": 0.3}
_DRAM_BYTE, _CACHE_BYTE = 1300 / 8, 100 / 8


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Joules per MAC and per byte, how many bytes an element has, and where the numbers come from.

    Attributes:
        mac, weight_byte, activation_byte: joules.
        weight_bytes, activation_bytes: bytes of an element.
        source: said in each plan that uses the model.
        scale: what the whole is multiplied by, as `calibrate` finds it.

    Example:
        >>> model = EnergyModel.of("int8")
        >>> round(model.mac * 1e12, 2), model.weight_bytes
        (0.3, 1)
    """

    mac: float
    weight_byte: float
    activation_byte: float
    weight_bytes: float
    activation_bytes: float
    source: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    @staticmethod
    def of(name: str = "float32") -> EnergyModel:
        """The model with the constants above, for one precision of weights and activations.

        Raises:
            BudgetError: an unknown precision.
        """
        check_arguments(EnergyModel.of, locals())
        at = precision(name)
        source = f"operations and traffic, constants of Horowitz 2014 (45 nm) at {name}, not calibrated"
        return EnergyModel(
            _MAC[name] * _PICO, _DRAM_BYTE * _PICO, _CACHE_BYTE * _PICO, at.weight, at.activation, source
        )  # fmt: skip

    def part(self, graph: Graph) -> Polynomials:
        """The energy of one forward pass as a function of the groups' counts."""
        terms: list[tuple[float, tuple[Space, ...]]] = []
        terms += [(self.scale * self.mac, spaces) for op in graph.ops for spaces in op.macs]
        for op, _ in moving(graph):
            terms += [(self.scale * self.weight_byte * self.weight_bytes, axes) for axes in weights(op)]
            terms += [(self.scale * self.activation_byte * self.activation_bytes, axes) for axes in activations(op)]
        return total((g.atom for g in graph.groups), terms)
