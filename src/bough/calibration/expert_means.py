"""Mean outputs of the experts of a mixture, each on the rows that are routed to any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration.data import Data
from bough.calibration.expert_outputs import expert_taps
from bough.calibration.mixtures import ExpertOutput, Mixture, find_mixtures
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.errors import PlanError
from bough.graph import Graph, OpRecord


@dataclass(frozen=True, slots=True)
class ExpertMeans:
    """A mixture, and the mean output of each of its experts: float64 [experts, features]."""

    mixture: Mixture
    means: NDArray[np.float64]


def expert_means(graph: Graph, data: Data, title: str = "expert means") -> list[ExpertMeans]:
    """Return the mean outputs of the experts of all mixtures, in the order of `find_mixtures`.

    Each batch runs once for each expert: in run s, the weights of expert e + s (modulo the number of experts) are in the place
    of expert e, so that after all runs each expert has seen each row that is routed to any. What the experts' outputs add up
    to is overwritten by that of run 0, so that later layers read the same in all runs.

    Args:
        graph: of the model.
        data: calibration data.
        title: of the pass.

    Raises:
        PlanError: as `Data.stream` and `find_mixtures`; or the outputs of experts pass through several values.
        TraceError: on this data the model takes another path than the traced one.
    """
    mixtures, sums = find_mixtures(graph), Sums()
    if not mixtures:
        return []
    for mixture in mixtures[:-1]:
        if mixture.gated is None:
            raise PlanError(
                f"the outputs of the experts with the weights {mixture.parameters[0][0]!r} do not pass through one value, so "
                "they can not be compared on equal inputs: use another criterion, such as reap"
            )
    observers = [_MeanObserver(graph, m, sums, str(i)) for i, m in enumerate(mixtures)]
    taps = [t for o in observers for t in o.taps()]
    with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps):
        for batch in data.stream(graph, sums, title):
            for shift in range(max(m.space.size for m in mixtures)):
                with _shifted(graph, mixtures, shift):
                    for observer in observers:
                        observer.shift = shift
                    data.run(graph, batch)
    return [
        ExpertMeans(m, (sums[f"{i} outputs"] / sums[f"{i} rows"].clamp_min(1)[:, None]).cpu().numpy())
        for i, m in enumerate(mixtures)
    ]


@dataclass(slots=True)
class _MeanObserver:
    """Taps that add the outputs of one mixture's experts to sums, in runs whose experts are shifted."""

    graph: Graph
    mixture: Mixture
    sums: Sums
    key: str
    shift: int = 0
    _total: list[Tensor] = field(default_factory=list)

    def taps(self) -> list[Tap]:
        """Return the taps on outputs of experts and on what they add up to."""
        taps = expert_taps(self.graph, self.mixture, self._observe)
        if self.mixture.gated is None:
            return taps
        op, argument = self.mixture.gated

        def keep(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            if self.shift:
                tensors[argument].copy_(self._total[0])
            else:
                self._total[:] = [tensors[argument].detach().clone()]

        return [*taps, Tap(op, keep)]

    def _observe(self, output: ExpertOutput, result: Tensor, experts: Tensor) -> None:
        """Add one result to the sums, unless all shifts of this mixture have been seen."""
        number = self.mixture.space.size
        if self.shift >= number:
            return
        features = output.features
        rows = result.detach().movedim(features, tuple(range(-len(features), 0))).double()
        owners = (experts.to(rows.device) + self.shift) % number
        owners = owners.expand(rows.shape[: rows.dim() - len(features)]).reshape(-1)
        flat = rows.reshape(len(owners), -1)
        for name, values in (("outputs", flat), ("rows", flat.new_ones(len(owners)))):
            total = values.new_zeros((number, *values.shape[1:]))
            self.sums.plus(f"{self.key} {name}", total.index_add_(0, owners, values))


@contextmanager
def _shifted(graph: Graph, mixtures: Sequence[Mixture], shift: int) -> Iterator[None]:
    """Put the weights of expert e + shift in the place of expert e, within the context."""
    _roll(graph, mixtures, shift)
    try:
        yield
    finally:
        _roll(graph, mixtures, -shift)


def _roll(graph: Graph, mixtures: Sequence[Mixture], shift: int) -> None:
    for mixture in mixtures:
        for name, dim in mixture.parameters if shift % mixture.space.size else ():
            tensor = graph.tensor(name)
            tensor.copy_(tensor.roll(-shift, dim))
