"""Refit of a cut checkpoint block by block: one block of the dense model and one of the cut model are in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from bough.calibration import MAX_PAUSED, Data, preserve_state
from bough.errors import CheckpointError
from bough.planning import Plan
from bough.recovery.refit import LayerwiseRefit, RefitOptions, RefittedLayer, block_ends, pair_blocks, table_of
from bough.storage import make_folder, write_files, write_text
from bough.storage.safetensors_file import Entry, read_header
from bough.storage.state import storable
from bough.streaming.architecture import example_inputs
from bough.streaming.cut_weights import CutWeights
from bough.streaming.names import Names
from bough.streaming.pieces import Pieces
from bough.streaming.resident import ResidentBlocks, caches_dropped
from bough.streaming.shards import Shards
from bough.streaming.weights import StreamedWeights
from bough.tracing import trace

_RECORD, _END = "refit", "end.json"


@dataclass(frozen=True, slots=True)
class StreamedRefit:
    """Records of a refit.

    Attributes:
        layers: for each refitted weight, the error before and after.
        skipped: weights that were not refitted, with the reason.
    """

    layers: tuple[RefittedLayer, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the records as plain data."""
        return {"layers": [x.to_dict() for x in self.layers], "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        return table_of(self.layers, self.skipped)

    @staticmethod
    def from_json(text: str) -> StreamedRefit:
        """Return what `to_dict` gave, from its JSON."""
        data = json.loads(text)
        return StreamedRefit(tuple(RefittedLayer(**x) for x in data["layers"]), dict(data["skipped"]))


@dataclass(frozen=True, slots=True)
class RefittedFiles:
    """A folder with one file for each block: the refitted tensors, by their names and dtypes in the cut checkpoint."""

    folder: Path

    def _file(self, block: int) -> Path:
        return self.folder / f"{block:05}.safetensors"

    def write(self, block: int, tensors: Mapping[str, Tensor], record: StreamedRefit) -> None:
        """Write the file of a block atomically."""
        make_folder(self.folder)
        text = json.dumps(record.to_dict())
        write_files([(self._file(block), lambda part: save_file(storable(tensors), part, {_RECORD: text}))])

    def record(self, block: int) -> StreamedRefit | None:
        """Return what was recorded of a block; None if the block has no file."""
        path = self._file(block)
        return StreamedRefit.from_json(read_header(path).metadata[_RECORD]) if path.is_file() else None

    def tensors(self) -> dict[str, tuple[Path, Entry]]:
        """Return {name in the cut checkpoint: (file, the tensor in it)} of all blocks that have a file."""
        return {e.name: (p, e) for p in sorted(self.folder.glob("*.safetensors")) for e in read_header(p).entries}

    def end(self, record: StreamedRefit) -> None:
        """Record that all blocks have been refitted."""
        make_folder(self.folder)
        write_text(self.folder / _END, json.dumps(record.to_dict()))

    def ended(self) -> StreamedRefit | None:
        """Return the records of a refit that has ended; None if it has not."""
        path = self.folder / _END
        return StreamedRefit.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


class CheckpointRefit:
    """Refit of the cut model that the pieces of a checkpoint make.

    Args:
        models: the dense and the cut model, on the meta device.
        names: of both models.
        plan: by which the model was cut.
        shards: the original's files.
        weights: the dense model's parameters.
        pieces: what the cut makes of each tensor.
        files: where refitted tensors are kept; blocks that are there are not solved again.
        on_read: called with the number of bytes of each parameter of the cut model that was read.

    Raises:
        CheckpointError: tensors are stored in another dtype than the config's, so that refitted ones would be rounded.
    """

    def __init__(
        self, models: tuple[nn.Module, nn.Module], names: tuple[Names, Names], plan: Plan, shards: Shards,
        weights: StreamedWeights, pieces: Pieces, files: RefittedFiles, on_read: Callable[[int], object],
    ) -> None:  # fmt: skip
        graphs = [trace(m, example_inputs(m)) for m in models]
        self._plan, self._files = plan, files
        self._cut = CutWeights(shards.folder, pieces.replaced(files.tensors()), names[1], on_read)
        self._dense, self._small = ResidentBlocks(graphs[0], weights), ResidentBlocks(graphs[1], self._cut)
        _check_dtypes(pieces, names[1], self._small.graph.model)
        stops = self._dense.stops, self._small.stops
        self._pairs = pair_blocks(graphs[0], graphs[1], plan, stops)
        self._ends = block_ends(self._pairs, stops)

    def size(self) -> int:
        """Return the bytes that are read: of the dense model once, of the cut model twice."""
        return self._dense.size() + 2 * self._small.size()

    def run(self, data: Data) -> StreamedRefit:
        """Solve the weights of one block after the other, and write each block's file.

        Raises:
            PlanError: no weight can be refitted, or the data is empty or gives NaN.
        """
        dense, small = self._dense.graph, self._small.graph
        probe = self._small.data(Data(list(islice(iter(data.batches), 1)), data.forward))
        with caches_dropped(), preserve_state(dense.model), preserve_state(small.model):  # until all runs are closed
            fit = LayerwiseRefit(dense, small, self._plan, data, RefitOptions(), self._ends, probe)
            with fit.runs(MAX_PAUSED) as runs:
                for block in range(len(fit.blocks)):
                    known = self._files.record(block)
                    with self._loaded(block):
                        if known is not None:
                            fit.pass_block(runs, block, known.layers, known.skipped)
                            continue
                        layers, means, skipped = len(fit.layers), len(fit.running_means), set(fit.skipped)
                        fit.solve_block(runs, block)
                        new = {n: why for n, why in fit.skipped.items() if n not in skipped}
                        record = StreamedRefit(tuple(fit.layers[layers:]), new)
                        self._files.write(block, self._refitted(fit, block, fit.running_means[means:]), record)
        record = StreamedRefit(tuple(fit.layers), dict(fit.skipped))
        self._files.end(record)
        return record

    @contextmanager
    def _loaded(self, block: int) -> Iterator[None]:
        """Load a block of the dense model, and that of the cut model that runs with it."""
        with ExitStack() as stack:
            stack.enter_context(self._dense.resident(block))
            if (own := self._pairs[block]) is not None:
                stack.enter_context(self._small.resident(own))
            yield

    def _refitted(
        self, fit: LayerwiseRefit, block: int, means: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the refitted tensors of a block, by their names in the checkpoint."""
        consumers = [c for stage in fit.blocks[block] for c in stage.consumers]
        shifted = {c.shift for c in consumers if c.constant is not None and c.shift}
        values = {n: self._small.graph.tensor(n) for n in ({c.name for c in consumers} | shifted)}
        buffers = {id(t): n for n, t in self._small.graph.model.named_buffers()}
        values |= {buffers[id(buffer)]: value for buffer, value in means}
        return {p.piece.name: values[n][p.part.index] for n in sorted(values) for p in self._cut.pieces(n)}


def _check_dtypes(pieces: Pieces, names: Names, model: nn.Module) -> None:
    """Raise CheckpointError if a parameter is stored in another dtype than the model's."""
    dtypes = {n: p.dtype for n, p in model.named_parameters(remove_duplicate=False)}
    for piece in (p for some in pieces.by_file.values() for p in some):
        found = names.find(piece.name)
        expected = None if found is None else dtypes.get(found[0].parameter)
        if expected not in (None, piece.entry.dtype):
            raise CheckpointError(
                f"{piece.entry.name} is stored as {piece.entry.dtype}, and config.json says {expected}: refit needs one dtype; "
                "save the loaded model with save_pretrained first"
            )
