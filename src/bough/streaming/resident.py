"""A model that runs with the weights of one block in memory, and its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bough.calibration import BlockwiseData, Data, stages_of
from bough.graph import Graph
from bough.ops import spec
from bough.streaming.cut_weights import CutWeights
from bough.streaming.weights import StreamedWeights


class ResidentBlocks:
    """A model whose parameters are loaded for one stage of its run at a time.

    A stage ends where an entry of a list of repeated layers begins, or the last entry ends; these are the layers of the
    traced graph. What a stage loads are the parameters that its operators read. Parameters that are not loaded are NaN.

    Args:
        graph: of the model of transformers on the meta device.
        weights: where parameters are read from.

    Attributes:
        graph: the same graph, of the model that is loaded stage by stage.
        stops: the operators before which a stage ends.
    """

    def __init__(self, graph: Graph, weights: StreamedWeights | CutWeights) -> None:
        self._weights = weights
        model = _without_parameters(graph.model)
        self.graph = replace(graph, model=model)
        self.stops = _stops(graph)
        state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        self._parameters = {n: t for n, t in state.items() if isinstance(t, nn.Parameter)}
        with torch.no_grad():
            for name, buffer in state.items():
                if name not in self._parameters:
                    buffer.copy_(weights.tensor(name))
        self._names = [self._read_by(stage) for stage in stages_of(self.stops, len(graph.ops))]

    def _read_by(self, ops: range) -> list[str]:
        """Return the parameters that some operators read, without tied ones twice."""
        first: dict[int, str] = {}
        for name in (name for i in ops for name in self.graph.ops[i].states):
            if name in self._parameters:
                first.setdefault(id(self._parameters[name]), name)
        return list(first.values())

    def size(self) -> int:
        """Return the bytes that one pass over data reads."""
        return sum(self._weights.size(name) for names in self._names for name in names)

    def data(self, data: Data) -> BlockwiseData:
        """Return data whose passes load the weights stage by stage."""
        return BlockwiseData(data.batches, data.forward, stops=self.stops, resident=self.resident)

    @contextmanager
    def resident(self, stage: int) -> Iterator[None]:
        """Load the parameters of a stage, and drop them on exit."""
        loaded = [self._parameters[name] for name in self._names[stage]]
        try:
            for name, parameter in zip(self._names[stage], loaded, strict=True):
                parameter.data = self._weights.tensor(name).to(parameter.dtype)
            with caches_dropped():
                yield
        finally:
            for parameter in loaded:
                parameter.data = _placeholder(parameter)


@contextmanager
def caches_dropped() -> Iterator[None]:
    """Have caches of transformers forget keys and values once these are returned; they would be those of all layers."""
    from transformers import cache_utils

    kinds = [getattr(cache_utils, name, None) for name in ("DynamicLayer", "DynamicSlidingWindowLayer")]
    originals = {kind: kind.update for kind in kinds if kind is not None}

    def dropping(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(layer: Any, *args: Any, **kwargs: Any) -> Any:
            returned = original(layer, *args, **kwargs)
            layer.keys, layer.values = _placeholder(layer.keys), _placeholder(layer.values)
            return returned

        return update

    for kind, original in originals.items():
        kind.update = dropping(original)
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.update = original


def _stops(graph: Graph) -> tuple[int, ...]:
    """Return the operators before which a stage ends: the first readers of weights in and behind entries of layer lists."""
    bounds = set[int]()
    for layer in graph.layers:
        if layer.container is not None:
            bounds.update((layer.module_calls[0].start, layer.module_calls[0].end))
    stops = {next((i for i in range(bound, len(graph.ops)) if _reads_weights(graph, i)), None) for bound in bounds}
    return tuple(sorted(i for i in stops if i))


def _reads_weights(graph: Graph, index: int) -> bool:
    """Whether an operator reads a parameter and is part of every run."""
    op = graph.ops[index]
    return any(n and graph.states[n].parameter for n in op.states) and not spec(op.name).rearranges and op.name != "_to_copy"


def _without_parameters(like: Any) -> nn.Module:
    """Return a new model of the same class and config, with all buffers, and with parameters that take no memory."""
    with _parameters_on_meta():
        model: nn.Module = type(like)._from_config(like.config, dtype=like.config.dtype or torch.float32).eval()
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = made.setdefault(id(parameter), nn.Parameter(_placeholder(parameter), requires_grad=False))
                module._parameters[name] = new
    return model


def _placeholder(like: Tensor) -> Tensor:
    """Return NaN (0 for integers) in the shape of a tensor, with the memory of one element."""
    value = torch.full((1,), float("nan") if like.is_floating_point() else 0, dtype=like.dtype)
    return value.reshape([1] * like.dim()).expand(like.shape)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Have modules register every new parameter on the meta device."""
    original: Callable[..., None] = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
