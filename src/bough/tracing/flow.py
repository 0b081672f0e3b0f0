"""Who makes a value of a recorded run, and who reads it; what a linear layer or convolution goes on to."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from bough.graph import Graph, OpRecord
from bough.tracing.contractions import weights_of

Produced = tuple[int, int]
"""(op, which of its results)."""

_RECURRENT = "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"
LAYERS = "linear", "convolution", "_convolution"


class Flow:
    """Who makes a value, and who reads it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[int, Produced] = {}
        self.readers: dict[int, list[tuple[OpRecord, int]]] = {}
        self.uses: dict[str, list[tuple[OpRecord, int]]] = {}  # of a parameter: the ops that join it with activations
        self.recurrent: dict[str, str] = {}
        self.readers_of = Counter(s for op in graph.ops for s in op.states)
        self.origin = weights_of(graph)
        for op in graph.ops:
            origins = [self.origin(op, i) for i in range(len(op.arguments))]
            for i, value in enumerate(op.inputs):
                self.readers.setdefault(value, []).append((op, i))
                if any(o is None for o in origins):
                    for name in origins[i] or ():
                        self.uses.setdefault(name, []).append((op, i))
                if op.states[i] and op.name in _RECURRENT:
                    self.recurrent[op.states[i]] = op.name
            self.made.update({v: (op.index, n) for n, v in enumerate(op.values)})

    def only_reader(self, op: OpRecord) -> tuple[OpRecord, int] | None:
        readers = self.readers.get(op.values[0], [])
        return readers[0] if len(op.values) == 1 and len(readers) == 1 else None

    def norm(self, op: OpRecord) -> OpRecord | None:
        """The batch norm that alone reads the op's result, by statistics that it alone reads."""
        after = self.only_reader(op)
        if after is None or after[0].name != "batch_norm" or after[1] != 0:
            return None
        mean = statistics(self.graph, after[0])
        return after[0] if mean and self.readers_of[mean[0]] == 1 else None

    def constant(self, op: OpRecord) -> int | None:
        """The argument that a linear layer or convolution adds to what it gives."""
        if op.name in LAYERS and len(op.arguments) > 2:
            return 2
        return 0 if op.name in ("addmm", "baddbmm") else None

    def mean(self, op: OpRecord) -> str:
        """The running mean of the batch norm that alone reads a linear layer or convolution; "" where there is none."""
        norm = self.norm(op) if op.name in LAYERS else None
        return statistics(self.graph, norm)[0] if norm is not None else ""

    def added(self, op: OpRecord) -> tuple[OpRecord, int] | None:
        """Where the op's result, normed or not, and it alone, is added to another value: (the add, its argument)."""
        after = self.only_reader(self.norm(op) or op)
        if after is None or after[0].name.rstrip("_") != "add" or after[0].scalars or len(after[0].inputs) != 2:
            return None
        return after


def statistics(graph: Graph, norm: OpRecord) -> list[str]:
    """The names of a batch norm's running mean and variance; none where it has no such."""
    return [s for s in norm.states[1:] if s and not graph.states[s].parameter]


def channel_scale(graph: Graph, norm: OpRecord) -> Tensor:
    """What a batch norm multiplies each channel by."""
    scale = (graph.tensor(statistics(graph, norm)[1]) + norm.detail[7]).rsqrt()
    weight = [s for s in norm.states[1:] if s and graph.states[s].parameter][:1]
    scaled: Tensor = scale * graph.tensor(weight[0]) if weight else scale
    return scaled.detach()
