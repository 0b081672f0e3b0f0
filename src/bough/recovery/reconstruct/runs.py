"""Runs of the dense and the cut model that pause at each block: what enters the cut block, and what leaves the dense one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bough.calibration import Data, StagedRun
from bough.calibration.staged_run import current_run, is_staged
from bough.graph import Graph
from bough.recovery.reconstruct.blocks import Block
from bough.tracing.capture.tree import tensors_within


@dataclass(frozen=True, slots=True)
class BlockInput:
    """The arguments of a call of a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module) -> Tensor:
        """Return the output of a block for these arguments, which stay as they are: a block may write to a cache among them."""
        memo = {id(t): t for t in tensors_within((self.args, self.kwargs))}
        args, kwargs = copy.deepcopy((self.args, self.kwargs), memo)
        return output_of(block(*args, **kwargs))


def output_of(output: Any) -> Tensor:
    """Return the first tensor of floating-point numbers in the output of a block."""
    return next(t for t in tensors_within(output) if t.is_floating_point())


class BlockRuns:
    """Context manager that runs both models on all batches, from block to block.

    Args:
        graphs: of the dense and of the cut model.
        blocks: in the order of the run.
        data: batches, each of which is kept half-run between two blocks.
    """

    def __init__(self, graphs: tuple[Graph, Graph], blocks: Sequence[Block], data: Data) -> None:
        self.graphs, self.blocks, self.data = graphs, blocks, data
        self._stack = ExitStack()
        self._runs: list[tuple[StagedRun, StagedRun]] = []
        self._seen: dict[int, Any] = {}

    def __enter__(self) -> BlockRuns:
        dense, small = (g.model for g in self.graphs)
        for block in self.blocks:
            self._stack.callback(dense.get_submodule(block.name).register_forward_hook(self._leaves).remove)
            hook = small.get_submodule(block.small).register_forward_pre_hook(self._enters, with_kwargs=True)
            self._stack.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        for pair in self._runs:
            for run in pair:
                run.close()
        self._stack.close()

    def next(self) -> list[tuple[BlockInput, Tensor]]:
        """Return, for each batch, what enters the next block of the cut model, and what leaves that of the dense model."""
        if not self._runs:
            self._runs = [tuple(self._start(g, batch) for g in self.graphs) for batch in self.data.batches]  # type: ignore[misc]
        found = []
        for pair in self._runs:
            for run in pair:
                run.advance(run.stage + 1)
            found.append((self._seen.pop(id(pair[1])), self._seen.pop(id(pair[0]))))
        return found

    def _start(self, graph: Graph, batch: Any) -> StagedRun:
        return StagedRun(graph.model, lambda: self.data.run(graph, batch))

    def _leaves(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_staged():
            self._pause(output_of(output).detach().clone())

    def _enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_staged():
            self._pause(BlockInput(args, kwargs))

    def _pause(self, value: Any) -> None:
        run = current_run()
        self._seen[id(run)] = value
        run.pause()


def call_counts(graph: Graph, names: Sequence[str], data: Data) -> Counter[str]:
    """Return how often each module is called in a run of the graph's model on the first batch."""
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        for name in names:

            def count(module: nn.Module, args: Any, name: str = name) -> None:
                counts[name] += 1

            stack.callback(graph.model.get_submodule(name).register_forward_pre_hook(count).remove)
        data.run(graph, next(iter(data.batches)))
    return counts
