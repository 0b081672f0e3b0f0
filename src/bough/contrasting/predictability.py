"""`predictability`: how well kept MACs, parameters and channels predict the measured latency of cut models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bough.arguments import check_arguments
from bough.contrasting.linear_fit import LinearFit, linear_fit
from bough.cutting import cut
from bough.errors import ComparisonError
from bough.graph import Graph
from bough.importance import Random, score
from bough.measuring import device_name, latencies
from bough.planning import Plan, plan
from bough.planning.allocation import form_of
from bough.planning.budget import LeastOfTied
from bough.tracing import trace
from bough.tracing.selection import Selection

COSTS = ("macs", "params", "channels")
_DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Point:
    """A cut model: its share of each cost of the dense model, and its latency.

    Attributes:
        kind: "dense"; "uniform" (all groups cut by one share); "mixed" (groups of equal shape by a random share).
        macs, params, channels: shares kept; channels are the units of all groups together.
        latency: median seconds of one pass.
        share: median seconds over those of the dense model, measured turn by turn in one process.
    """

    kind: str
    macs: float
    params: float
    channels: float
    latency: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Predictability:
    """Result of `predictability`.

    Attributes:
        points: the dense model first.
        fits: for each cost, the share of the latency as a straight line of the share of the cost.
        device, backend, clock: how it was measured.
        round_to: what widths are multiples of.
        ops: number of operators in a run of the model.
    """

    points: tuple[Point, ...]
    fits: dict[str, LinearFit]
    device: str
    backend: str
    clock: str
    round_to: int
    ops: int

    @property
    def proportionality(self) -> float:
        """The smallest speed-up over MACs reduction of the uniform cuts: 1 if time falls as MACs do, less if it lags."""
        uniform = [p for p in self.points if p.kind == "uniform"] or [p for p in self.points if p.kind != _DENSE]
        return min(p.macs / p.share for p in uniform)

    def to_dict(self) -> dict[str, Any]:
        """Return points and fits, for JSON."""
        return {
            "device": self.device, "backend": self.backend, "clock": self.clock, "round_to": self.round_to, "ops": self.ops,
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()}, "proportionality": self.proportionality,
            "points": [p.to_dict() for p in self.points],
        }  # fmt: skip

    def plot(self, path: str | Path) -> None:
        """Draw latency against each cost with the fitted line, and the residuals; see `bough.contrasting.plots`."""
        check_arguments(Predictability.plot, locals())
        from bough.contrasting.plots import plot_predictability

        plot_predictability(self, Path(path))

    def __str__(self) -> str:
        lines = [f"{'':8} {'MACs':>7} {'params':>7} {'channels':>8} {'latency':>11} {'share':>7} {'by MACs':>8} {'off':>7}"]
        for i, p in enumerate(self.points):
            predicted, off = self.fits["macs"].predict(p.macs), self.fits["macs"].residuals[i]
            lines.append(
                f"{p.kind:8} {p.macs:7.1%} {p.params:7.1%} {p.channels:8.1%} {1e3 * p.latency:8.2f} ms {p.share:7.1%} "
                f"{predicted:8.1%} {off:+7.1%}"
            )
        lines.append(
            f"{self.device}; {self.backend}, {self.clock} clock; widths are multiples of {self.round_to}; {self.ops} operators"
        )
        for name, f in self.fits.items():
            line = f"latency = {f.intercept:.3f} + {f.slope:.3f} x {name} kept"
            lines.append(f"{line}: R2 {f.r2:.4f}, off by {100 * f.largest_residual:.1f} points at most")
        lines.append(f"speed-up / reduction of MACs: at least {self.proportionality:.2f} of uniform cuts")
        return "\n".join(lines)

    __repr__ = __str__


def predictability(
    model: nn.Module,
    example_inputs: Any,
    *,
    backend: str = "eager",
    clock: str = "wall",
    points: int = 12,
    least: float = 0.25,
    round_to: int = 8,
    repeats: int = 30,
    ignore: Selection = (),
    seed: int = 0,
    progress: bool = False,
) -> Predictability:
    """Cut a model to many sizes, measure each, and fit its latency by kept MACs, parameters and channels.

    Every second cut keeps one share of all groups, from `least` up; the others keep random shares, so that the fit is not of
    one family of models alone. Each cut is timed turn by turn with the dense model. Weights do not matter, and are random cuts.

    Args:
        model: stays as it is.
        example_inputs: as for `trace`.
        backend: "eager", "compile" or "onnxruntime".
        clock: "wall", or "cpu": the CPU time of the one thread, for a machine that does other work too.
        points: number of cut models, at least 3.
        least: smallest share of units kept, above 0 and below 1.
        round_to: widths are multiples of this.
        repeats: timed passes of each model.
        ignore: as for `trace`.
        seed: of the random cuts.
        progress: show a progress bar.

    Raises:
        ArgumentError: an argument of another type.
        ComparisonError: an option out of range, or nothing can be cut.
        TraceError: the model could not be run, or not in this backend.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
        >>> result = bough.predictability(net, torch.randn(8, 64), points=3, repeats=2)
        >>> len(result.points), sorted(result.fits)
        (4, ['channels', 'macs', 'params'])
    """
    check_arguments(predictability, locals())
    if points < 3 or not 0 < least < 1 or round_to < 1 or repeats < 1:
        raise ComparisonError(
            f"points={points}, least={least}, round_to={round_to}, repeats={repeats}: at least 3 points, 0 < least < 1, "
            "round_to and repeats at least 1"
        )
    from rich.progress import track  # a third of the time that importing bough would take

    graph = trace(model, example_inputs, ignore=ignore)
    if not graph.groups:
        raise ComparisonError(f"no group of {type(model).__name__} can be cut: `bough inspect` says why")
    plans = _plans(graph, points, least, round_to, seed)
    found = [Point(_DENSE, 1.0, 1.0, 1.0, 0.0, 1.0)]
    for kind, chosen in track(plans, "predictability") if progress else plans:
        times = latencies(
            {"dense": graph.model, "cut": cut(graph.model, chosen)},
            example_inputs,
            repeats=repeats,
            backend=backend,
            clock=clock,
        )
        found.append(_point(kind, chosen, times["dense"].median, times["cut"].median))
    dense_seconds = float(np.median([p.latency / p.share for p in found[1:]]))
    found[0] = Point(_DENSE, 1.0, 1.0, 1.0, dense_seconds, 1.0)
    fits = {cost: linear_fit([getattr(p, cost) for p in found], [p.share for p in found]) for cost in COSTS}
    return Predictability(tuple(found), fits, device_name(), backend, clock, round_to, len(graph.ops))


def _plans(graph: Graph, points: int, least: float, round_to: int, seed: int) -> list[tuple[str, Plan]]:
    """Return cuts by one share of all groups, and by random shares of groups of equal shape, in turn."""
    rng, scores = np.random.default_rng(seed), score(graph, Random(seed))
    uniform = np.linspace(least, 1.0, (points + 1) // 2, endpoint=False)
    found: list[tuple[str, Plan]] = []
    for number in range(points):
        if number % 2 == 0:
            shares = dict.fromkeys((form_of(g) for g in graph.groups), float(uniform[number // 2]))
        else:
            shares = {}
            for g in graph.groups:
                shares.setdefault(form_of(g), float(rng.uniform(least, 1.0)))
        counts = {g.name: _multiple(shares[form_of(g)] * g.size, g.size, round_to) for g in graph.groups}
        kind = "uniform" if number % 2 == 0 else "mixed"
        found.append((kind, plan(graph, scores, keep=LeastOfTied(counts), round_to=round_to)))
    return found


def _multiple(wanted: float, size: int, round_to: int) -> int:
    """Return the multiple of `round_to` next to `wanted`, at least one of them; small groups stay whole."""
    return size if size <= round_to else min(size, max(round_to, round(wanted / round_to) * round_to))


def _point(kind: str, chosen: Plan, dense: float, small: float) -> Point:
    kept, whole = (sum(counts[i] for counts in chosen.groups.values()) for i in (0, 1))
    macs, params = chosen.cost.macs / chosen.original.macs, chosen.cost.params / chosen.original.params
    return Point(kind, macs, params, kept / whole, small, small / dense)
