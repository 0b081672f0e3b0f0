"""How long a forward pass takes here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bough.arguments import check_arguments
from bough.errors import TraceError
from bough.measuring.runners import Run, eval_mode, runner


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one forward pass: the median, and the spread from the lower to the upper quartile."""

    median: float
    spread: float
    repeats: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ms (quartiles {1e3 * self.spread:.2f} ms apart)"


def latencies(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    repeats: int = 30,
    warmup: int = 3,
    backend: str = "eager",
    clock: str = "wall",
) -> dict[str, Latency]:
    """Time several models side by side, turn by turn, in eval mode; each model's mode is restored.

    All run once before, so that one that can not is named.

    Args:
        models: by name, all taking the same inputs.
        example_inputs: as for `bough.trace`.
        repeats, warmup: timed and untimed passes of each model.
        backend: "eager", "compile" or "onnxruntime", see `runner`.
        clock: "wall", or "cpu": the CPU time of the calling thread, for one thread on a machine that does other work too.

    Raises:
        TraceError: as `runner`; an unknown clock, or "cpu" with several threads.

    Example:
        >>> import torch, bough
        >>> models = {"small": torch.nn.Linear(4, 2), "large": torch.nn.Linear(4, 2000)}
        >>> list(bough.measuring.latencies(models, torch.randn(1, 4), repeats=3))
        ['small', 'large']
    """
    now = _clock(clock)
    times: dict[str, list[float]] = {n: [] for n in models}
    with eval_mode(*models.values()):
        runs = {n: runner(model, example_inputs, backend) for n, model in models.items()}
        _try(runs)
        for turn in range(warmup + repeats):
            for name, run in runs.items():
                begin = now()
                run()
                if turn >= warmup:
                    times[name].append(now() - begin)
    return {n: _summary(t) for n, t in times.items()}


def _clock(name: str) -> Callable[[], float]:
    if name not in ("wall", "cpu"):
        raise TraceError(f"clock={name!r} is unknown: use 'wall' or 'cpu'")
    if name == "cpu" and torch.get_num_threads() > 1:
        raise TraceError("clock='cpu' is the time of one thread: call torch.set_num_threads(1) first, or use clock='wall'")
    return time.perf_counter if name == "wall" else time.thread_time


def _try(runs: Mapping[str, Run]) -> None:
    for name, run in runs.items():
        try:
            run()
        except (RuntimeError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise TraceError(f"{name} can not be run on these example_inputs: {type(error).__name__}: {first}") from error


def latency(model: nn.Module, example_inputs: Any, *, repeats: int = 30, warmup: int = 3, backend: str = "eager") -> Latency:
    """Time one model in eval mode; its mode is restored.

    Args:
        model, example_inputs, repeats, warmup, backend: see `latencies`.

    Raises:
        TraceError: as for `latencies`.

    Example:
        >>> import torch, bough
        >>> bough.measuring.latency(torch.nn.Linear(4, 2), torch.randn(1, 4), repeats=3).median > 0
        True
    """
    check_arguments(latency, locals())
    return latencies({"model": model}, example_inputs, repeats=repeats, warmup=warmup, backend=backend)["model"]


def _summary(times: list[float]) -> Latency:
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0], times[0], times[0])
    return Latency(statistics.median(times), high - low, len(times))
