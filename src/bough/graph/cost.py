"""What a model costs: one number per kind of cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs at the example inputs' shapes.

    `params`: numbers of parameters. `macs`: multiply-accumulates of linear and recurrent layers, convolutions, matrix
    products and attention in one forward pass. `size`: bytes of the state dict. `activation_bytes`: bytes of all tensors
    that ops make (views and in-place results not counted again). `peak_memory`: most bytes of activations alive at once,
    each from the op that makes it to the last that reads it, inputs included. Where a precision is asked for, both are in
    bytes at that precision: integers (indices, masks) keep their width; at int8, `peak_memory` has the copies that the C export
    for microcontrollers makes (of slices and expansions, and of inputs between zeros).

    Where asked for: `stored`: bytes of the state dict at another precision (see `PRECISIONS`). `latency`: seconds of one
    forward pass, by a `LatencyTable`. `energy`: joules of one, by an `EnergyModel`. `flash`: bytes of constants of the C
    export for microcontrollers, which is int8; its code is not counted. Otherwise None.
    """

    params: int
    macs: int
    size: int
    activation_bytes: int
    peak_memory: int
    stored: int | None = None
    latency: float | None = None
    energy: float | None = None
    flash: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The costs that are known."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @staticmethod
    def of(values: Mapping[str, float]) -> Cost:
        """From numbers per field; counts and bytes become integers."""
        return Cost(**{k: v if k in SECONDS_AND_JOULES else round(v) for k, v in values.items()})  # type: ignore[arg-type]


FIELDS = tuple(f.name for f in fields(Cost))
SECONDS_AND_JOULES = {"latency": "s", "energy": "J"}


def shown(field: str, value: float) -> str:
    """A cost for people: '3.12 ms', '1.20 mJ', '25,557,032'."""
    unit = SECONDS_AND_JOULES.get(field)
    if unit is None:
        return f"{value:,.0f}"
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value:g} {unit}"
