"""What each expert of a mixture adds to the output: the norms of gated outputs, summed over the rows routed to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bough.calibration.data import Data
from bough.calibration.mixtures import ExpertOutput, Mixture, find_mixtures
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.graph import Graph, OpRecord
from bough.spaces import Space
from bough.tracing.capture.stream import tensors_in


@dataclass(frozen=True, slots=True)
class GatedNorms:
    """Sums over the rows that are routed to each expert, all float64 [experts].

    Attributes:
        space: index space of the experts.
        norms: sum of gate value times Euclidean norm of the expert's output.
        rows: number of rows: those whose gate value is not zero.
    """

    space: Space
    norms: NDArray[np.float64]
    rows: NDArray[np.float64]


def gated_norms(graph: Graph, data: Data, title: str = "gated norms") -> list[GatedNorms]:
    """Return the gated norms of all mixtures of experts, from one pass over the data.

    The gate value of a row is read as the derivative of the mixture's output with respect to the row, so it does not matter how
    the model dispatches tokens to experts. If no gate multiplies the outputs, it is 1 for each output that is not zero.

    Args:
        graph: of the model.
        data: calibration data.
        title: of the pass.

    Raises:
        PlanError: as `Data.stream` and `find_mixtures`.
        TraceError: on this data the model takes another path than the traced one.
    """
    mixtures, sums = find_mixtures(graph), Sums()
    if not mixtures:
        return []
    observers = [_MixtureObserver(graph, m, sums, str(i)) for i, m in enumerate(mixtures)]
    taps = [t for o in observers for t in o.taps()]
    with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps):
        graph.model.requires_grad_(False)
        for batch in data.stream(graph, sums, title):
            output = data.run(graph, batch)
            for observer in observers:
                observer.finish(output)
    return [
        GatedNorms(m.space, sums[f"{i} norms"].cpu().numpy(), sums[f"{i} rows"].cpu().numpy()) for i, m in enumerate(mixtures)
    ]


@dataclass(slots=True)
class _MixtureObserver:
    """Taps that add the gated norms of one mixture to sums.

    Between the outputs of the experts and the gated output, gradients are enabled; outputs become leaves of that graph.
    """

    graph: Graph
    mixture: Mixture
    sums: Sums
    key: str
    _pending: list[tuple[Tensor, Tensor, Tensor, tuple[int, ...]]] = field(default_factory=list)

    def taps(self) -> list[Tap]:
        """Return the taps on outputs of experts and on what the gated outputs become."""
        taps = expert_taps(self.graph, self.mixture, self._observe)
        if self.mixture.gated is None:
            return taps
        op, argument = self.mixture.gated

        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            self._read_gates(tensors[argument : argument + 1])

        return [*taps, Tap(op, read)]

    def _observe(self, output: ExpertOutput, result: Tensor, experts: Tensor) -> None:
        """Store one result until its gate values are known."""
        norms = torch.linalg.vector_norm(result.detach().double(), 2, output.features)
        experts = experts.to(norms.device).expand_as(norms)
        if not self.mixture.weighed:
            self._add(norms, experts, norms != 0)
            return
        self._pending.append((result.requires_grad_(True), norms, experts, output.features))
        torch.set_grad_enabled(True)

    def finish(self, output: object) -> None:
        """Read the gates of results that only the model's output depends on."""
        if self._pending:
            self._read_gates([t for t in tensors_in(output) if t.requires_grad])

    def _read_gates(self, gated: Sequence[Tensor]) -> None:
        """Add what the stored results contribute, given what they have become."""
        torch.set_grad_enabled(False)
        pending, self._pending = self._pending, []
        if not any(t.requires_grad for t in gated):
            return
        results = [p[0] for p in pending]
        gradients = torch.autograd.grad(gated, results, [torch.ones_like(t) for t in gated], allow_unused=True)
        for (result, norms, experts, features), gradient in zip(pending, gradients, strict=True):
            if gradient is not None:
                size = int(np.prod([result.shape[d] for d in features]))
                gates = torch.linalg.vector_norm(gradient.double(), 2, features) / size**0.5
                self._add(gates * norms, experts, gates != 0)

    def _add(self, norms: Tensor, experts: Tensor, routed: Tensor) -> None:
        """Add the norms of routed rows to the sums."""
        number = self.mixture.space.size
        flat = experts.reshape(-1)
        for name, values in (("norms", norms), ("rows", routed)):
            total = torch.zeros(number, dtype=torch.float64, device=flat.device)
            self.sums.plus(f"{self.key} {name}", total.index_add_(0, flat, values.reshape(-1).double()))


def _without(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a tensor without dims of size 1."""
    return tensor.reshape([n for d, n in enumerate(tensor.shape) if d not in dims])


def expert_taps(graph: Graph, mixture: Mixture, observe: Callable[[ExpertOutput, Tensor, Tensor], None]) -> list[Tap]:
    """Return taps that call `observe(output, result, experts)` for each result that has outputs of experts.

    `experts` has the number of the expert of each row, broadcastable to the rows of the result.
    """
    return [tap for output in mixture.outputs for tap in _output_taps(graph, mixture, output, observe)]


def _output_taps(
    graph: Graph, mixture: Mixture, output: ExpertOutput, observe: Callable[[ExpertOutput, Tensor, Tensor], None]
) -> list[Tap]:  # fmt: skip
    """Return the taps that observe one operator."""
    experts: list[Tensor] = []
    chosen: list[Tensor] = []

    def choose(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        chosen[:] = [tensors[1]]

    def assign(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        experts[:] = [_experts_of(graph, mixture, output, tensors, chosen)]

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        observe(output, tensors[0], experts.pop())

    picking = [] if output.chosen is None else [Tap(output.chosen, choose)]
    return [*picking, Tap(output.op, assign), Tap(output.result, read, results=True)]


def _experts_of(
    graph: Graph, mixture: Mixture, output: ExpertOutput, tensors: Sequence[Tensor], chosen: Sequence[Tensor]
) -> Tensor:  # fmt: skip
    """Return the expert of each row, broadcastable to the rows of the result."""
    rank = len(graph.ops[output.result].results[0])
    if output.axis is not None:
        numbers = torch.arange(mixture.space.size)
        return _without(numbers.reshape([-1 if d == output.axis else 1 for d in range(rank)]), output.features)
    if output.chosen is not None:
        shape = [1] * rank
        for d, n in zip(output.chosen_dims, chosen[0].shape, strict=True):
            shape[d] = n
        return _without(chosen[0].reshape(shape), output.features)
    if graph.ops[output.op].name == "_grouped_mm":
        rows = torch.arange(tensors[0].shape[0], device=tensors[2].device, dtype=tensors[2].dtype)
        return torch.searchsorted(tensors[2], rows, right=True)
    parameter = graph.tensor(output.parameter)
    offset = tensors[output.argument].storage_offset() - parameter.storage_offset()
    return torch.tensor(offset // parameter.stride(output.dim) % parameter.shape[output.dim])
