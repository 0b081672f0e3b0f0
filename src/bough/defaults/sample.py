"""The data that defaults calibrate on: the first samples of what the user gave, or synthetic inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from bough.calibration import Data, as_data, batch_size, keeps_statistics, process_count, synthesize
from bough.errors import PlanError
from bough.graph import Graph
from bough.tracing.capture.tree import tensors_within

_SAMPLES = 1024
_BYTES = 2**28
_TRIAL = 256  # samples that each candidate is refitted on
_JUDGED = 128  # samples that candidates are compared on
_STEPS, _SYNTHETIC, _FEWEST = 50, 128, 32
_WORK = {"cpu": 2e12, "other": 1e14}  # MACs that synthesizing inputs may take: about half a minute


@dataclass(frozen=True, slots=True)
class Sample:
    """Calibration data that can be gone through again and again.

    `fit` and `judge` are parts of `data` on which candidates are refitted and compared; they are the same where there is
    one batch only. `origin` says what the data is; `real` whether the user gave it.
    """

    data: Data
    fit: Data
    judge: Data
    origin: str
    real: bool


def sample_of(graph: Graph, data: Data | Iterable[Any] | None, *, everything: bool) -> Sample | None:
    """Return the calibration data to use; None where there is none and none can be made.

    Of `data`, the first batches: up to 1,024 samples or 256 MiB. Without data, synthetic inputs where batch norms keep
    statistics and making them takes no longer than about half a minute.

    Raises:
        PlanError: the data gives no batches.
    """
    if data is None:
        return _synthetic(graph)
    given = as_data(data)
    if everything:
        batches, origin = list(given.batches) if given.once else given.batches, "the data"
    else:
        batches, origin = _first(given.batches)
    if isinstance(batches, list) and not batches:
        raise PlanError("the data gives no batches: give batches, such as a DataLoader of a dataset with samples")
    whole = replace(given, batches=batches)
    if given.distributed:  # candidates are compared in one process only
        return Sample(whole, whole, whole, f"{origin} of {process_count()} processes", real=True)
    return Sample(whole, *_parts(whole), origin, real=True)


def _first(batches: Iterable[Any]) -> tuple[list[Any], str]:
    """Return the first batches, and what they are in words."""
    kept: list[Any] = []
    samples = size = 0
    left = False
    for batch in batches:
        if samples >= _SAMPLES or size >= _BYTES:
            left = True
            break
        kept.append(batch)
        samples += batch_size(batch)
        size += sum(t.numel() * t.itemsize for t in tensors_within(batch))
    return kept, f"the first {samples:,} samples of the data" if left else f"{samples:,} samples"


def _parts(data: Data) -> tuple[Data, Data]:
    """Return the batches to refit candidates on and, behind them, those to compare candidates on."""
    batches: list[Any] = []
    samples = 0
    for batch in data.batches:
        if samples >= _TRIAL + _JUDGED:
            break
        batches.append(batch)
        samples += batch_size(batch)
    if len(batches) < 2:
        return replace(data, batches=batches), replace(data, batches=batches)
    judged = max(1, round(len(batches) * _JUDGED / (_TRIAL + _JUDGED)))
    return replace(data, batches=batches[:-judged]), replace(data, batches=batches[-judged:])


def _synthetic(graph: Graph) -> Sample | None:
    """Return inputs made from the statistics of batch norms; None where there are none or the work is too much."""
    if not keeps_statistics(graph):
        return None
    device = next(p.device.type for p in graph.model.parameters())
    size = next((len(t) for t in tensors_within((graph.args, graph.kwargs)) if t.dim()), 1) or 1
    each = 3 * _STEPS * graph.cost().macs / size  # a backward pass takes twice a forward pass
    samples = int(min(_WORK.get(device, _WORK["other"]) / max(each, 1.0), _SYNTHETIC))
    if samples < _FEWEST or device == "meta":
        return None
    batch = -(-samples // 2)
    made = Data(synthesize(graph, samples=2 * batch, batch_size=batch, steps=_STEPS))
    return Sample(made, *_parts(made), f"{2 * batch} synthetic inputs, made from the statistics of batch norms", real=False)
