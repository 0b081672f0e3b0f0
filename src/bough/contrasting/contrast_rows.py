"""The rows of a contrast: what a variant of the model stores, computes, takes in time, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Any

from bough.storage.schema import items, nullable, number, record, table, text

DENSE = "dense"
_NUMBERS = table(number)
ROW_SCHEMA = record(
    {
        "variant": text, "keep": nullable(number), "params": number, "nonzeros": number, "macs": number,
        "nonzero_macs": number, "peak_memory": number, "files": _NUMBERS, "seconds": _NUMBERS, "speedup": _NUMBERS,
        "before": nullable(number), "after": nullable(number), "trained": items(number),
        "notes": table(text), "error": nullable(text),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """One variant of the model.

    Attributes:
        variant: "dense", "structured", a method of `sparsify`, an N:M pattern with its method, or "structured, 2:4 ...".
        keep: the share of parameters that was asked for; None for the dense model and for a pattern on the dense model.
        params: number of parameters that the model has, zeros included.
        nonzeros: number of them that are not zero.
        macs: multiply-accumulates of one pass on dense kernels.
        nonzero_macs: those whose weight is not zero: what a perfect sparse kernel would compute.
        peak_memory: bytes of activations at their peak, and of the weights as dense tensors.
        files: bytes of the dense file, of it gzipped, of the smallest sparse file, and of the smallest of those gzipped.
        seconds: median latency by runtime: "eager" for dense kernels, "csr" and "bsr" for sparse ones.
        speedup: the dense model's latency over that, measured turn by turn.
        before, after: the metric before and after training, the mean over seeds; None if there was none.
        trained: the metric after training with each seed.
        notes: remarks by subject.
        error: why the variant could not be made; None if it could.
    """

    variant: str
    keep: float | None = None
    params: int = 0
    nonzeros: int = 0
    macs: int = 0
    nonzero_macs: int = 0
    peak_memory: int = 0
    files: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    speedup: dict[str, float] = field(default_factory=dict)
    before: float | None = None
    after: float | None = None
    trained: list[float] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple[str, float | None]:
        """What distinguishes rows of one contrast."""
        return self.variant, self.keep

    @property
    def metric(self) -> float | None:
        """The metric after training, or before if there was none."""
        return self.before if self.after is None else self.after

    @property
    def spread(self) -> float | None:
        """The standard deviation of the metric after training, over seeds; None with fewer than two of them."""
        return stdev(self.trained) if len(self.trained) > 1 else None

    @property
    def fastest(self) -> tuple[str, float]:
        """The runtime with the largest speed-up, and the speed-up."""
        return max(self.speedup.items(), key=lambda item: item[1], default=("", 0.0))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ContrastRow:
        """Return the row that `to_dict` gave."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)
