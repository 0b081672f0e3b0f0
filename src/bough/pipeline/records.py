"""What a pipeline reports: a record of each stage, as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bough.planning import Plan


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a stage did.

    Attributes:
        name: of the stage.
        seconds: that it took, in the process that finished it.
        metric: of `evaluate` after the stage; None without `evaluate`, and for stages that leave the model as it is.
        cost: of the model after the stage: {"params", "macs", "size", ...}; empty for exports.
        details: what the stage itself reports.
    """

    name: str
    seconds: float
    metric: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return {
            "name": self.name, "seconds": self.seconds, "metric": self.metric, "cost": dict(self.cost),
            "details": dict(self.details),
        }  # fmt: skip


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline gives.

    Attributes:
        model: in float, after the last stage that changes it.
        plan: of the cut; None without one.
        quantized: the program in INT8; None without quantization.
        stages: a record of each stage, the start included.
        folder: of the run, with `report.json`, `report.html`, the stages' folders and the exported files.
        resumed: number of stages that were finished before this call.
    """

    model: nn.Module
    plan: Plan | None
    quantized: nn.Module | None
    stages: tuple[StageRecord, ...]
    folder: Path
    resumed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the records as plain values, for JSON."""
        return {"folder": str(self.folder), "resumed": self.resumed, "stages": [s.to_dict() for s in self.stages]}

    def __str__(self) -> str:
        lines = [f"{'stage':12} {'metric':>10} {'params':>12} {'MACs':>14} {'size (bytes)':>13} {'seconds':>8}"]
        for s in self.stages:
            metric = "" if s.metric is None else f"{s.metric:.6g}"
            counts = [f"{s.cost[k]:,.0f}" if k in s.cost else "" for k in ("params", "macs", "size")]
            lines.append(f"{s.name:12} {metric:>10} {counts[0]:>12} {counts[1]:>14} {counts[2]:>13} {s.seconds:8.1f}")
        return "\n".join([*lines, f"{self.folder}: report.json, report.html"])
