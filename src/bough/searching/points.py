"""What is known of one candidate of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate that was evaluated, or the error that kept it from being.

    Attributes:
        number: of the trial in the study.
        origin: the start point ("start: greedy", "dense"), or the method that proposed it.
        counts, left_out: the candidate: units kept by group name, and layers left out.
        metrics: what `evaluate` gave, by name; empty where it failed.
        errors: standard errors of the metrics that are means over samples.
        cost: costs by the closed form, per field of `Cost`.
        values: of the objectives, in their order; empty where it failed.
        violations: by how much bounds on metrics are missed, as shares; zero or less where they are met.
        divergence: how far the outputs are from the dense model's on the unlabelled data; None without data.
        measured: costs as measured of the model, per field of `Cost`; empty where nothing measures.
        seconds: spent on "make" (cut and refit), "evaluate", "diverge" and "measure".
        worker: who evaluated it: host, process and a random part.
        error: why there is no metric.
    """

    number: int
    origin: str
    counts: Mapping[str, int]
    left_out: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    violations: Mapping[str, float] = field(default_factory=dict)
    divergence: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether the candidate was evaluated and meets the bounds on metrics."""
        return self.error is None and all(v <= 0 for v in self.violations.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "left_out": list(self.left_out), "values": list(self.values)}
