"""Joules as the processor counts them: RAPL, through Linux's powercap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bough.arguments import check_arguments
from bough.cost import EnergyModel, Prices
from bough.errors import TraceError
from bough.graph import Graph
from bough.measuring.runners import eval_mode, runner

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Counter:
    """One package's counter of microjoules, which starts again at `wraps`."""

    path: Path
    name: str
    wraps: int

    def read(self) -> int:
        return int((self.path / "energy_uj").read_text())

    def between(self, before: int, after: int) -> float:
        """Joules from one reading to a later one, at most one turn of the counter apart."""
        return ((after - before) % self.wraps if self.wraps else after - before) * 1e-6


def counters(root: Path = POWERCAP) -> list[Counter]:
    """The packages' counters.

    Raises:
        TraceError: there are none, or they can not be read.
    """
    found = []
    for path in sorted(root.glob("intel-rapl:*")):
        if path.name.count(":") == 1:  # a package, not a part of one
            try:
                counter = Counter(path, (path / "name").read_text().strip(), int((path / "max_energy_range_uj").read_text()))
                counter.read()
            except PermissionError:
                raise TraceError(f"{path}/energy_uj can not be read: energy counters are for root only, by default") from None
            except (OSError, ValueError) as error:
                raise TraceError(f"{path} is no energy counter that can be read: {error}") from None
            found.append(counter)
    if not found:
        raise TraceError(f"there are no energy counters (RAPL) under {root}: energy can not be calibrated on this machine")
    return found


def joules(run: Callable[[], object], seconds: float, packages: Sequence[Counter]) -> float:
    """Joules of one `run` above what the machine draws while idle, each measured for some seconds."""
    begin, before = time.monotonic(), [c.read() for c in packages]
    time.sleep(seconds)
    idle = _drawn(packages, before) / (time.monotonic() - begin)
    begin, before, times = time.monotonic(), [c.read() for c in packages], 0
    while time.monotonic() - begin < seconds or times == 0:
        run()
        times += 1
    return (_drawn(packages, before) - idle * (time.monotonic() - begin)) / times


def calibrate(
    graph: Graph, example_inputs: Any, model: EnergyModel | None = None, *, backend: str = "eager", seconds: float = 2.0,
    root: Path = POWERCAP,
) -> EnergyModel:  # fmt: skip
    """Return the energy model, scaled to what the counters measure for the graph's own model.

    The machine must be idle otherwise: what else runs is counted too.

    Args:
        graph, example_inputs: of the model that is run.
        model: constants that are scaled; `EnergyModel.of()` unless given.
        backend: as for `runner`.
        seconds: how long the model runs between two readings of the counters.
        root: folder of the counters (RAPL, by Linux's powercap).

    Raises:
        TraceError: no counters, or they saw no more than at idle.
    """
    check_arguments(calibrate, locals())
    packages = counters(root)
    model = model or EnergyModel.of()
    with eval_mode(graph.model):
        measured = joules(runner(graph.model, example_inputs, backend), seconds, packages)
    if measured <= 0:
        raise TraceError("the energy counters saw no more than at idle: give more seconds, on a machine that is idle otherwise")
    predicted = Prices(energy=model).form(graph).cost().energy
    assert predicted is not None
    source = f"operations and traffic, scaled to RAPL ({', '.join(c.name for c in packages)})"
    return replace(model, scale=model.scale * measured / predicted, source=source)


def _drawn(packages: Sequence[Counter], before: Sequence[int]) -> float:
    return sum(c.between(b, c.read()) for c, b in zip(packages, before, strict=True))
