"""Calibration data: an iterable of batches that is read in one streaming pass, which can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bough.arguments import check_fields
from bough.calibration.batches import batch_size, parameter_device, traced_inputs
from bough.calibration.losses import as_model_loss
from bough.calibration.processes import (
    add_over_processes,
    process_count,
    process_rank,
    require_equal_in_processes,
    require_process_group,
)
from bough.calibration.sums import SAMPLES, Sums, load_sums, save_sums
from bough.calls import Call
from bough.errors import PlanError
from bough.graph import Graph
from bough.tracing.capture.attribute_numbers import substituted
from bough.tracing.fingerprint import weights_digest

Loss = Callable[[Any, Any], Tensor]
"""(model, batch), (output, batch) or (output, labels) -> mean loss over the batch, a scalar; see `bough.calibration.losses`."""

_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Data:
    """Calibration batches and options of the pass over them.

    A batch is what a DataLoader or a tokenizer gives: a tensor, a tuple or list, or a dict; the first dim of its first tensor
    numbers the samples. Memory is bounded by the running sums of the criterion, for any number of batches.

    Attributes:
        batches: any iterable of batches; each criterion of a combination iterates over it once. A torch Dataset, which gives
            samples, is read in batches of 64.
        forward: (model, batch) -> output. Without it, the model is called with the parts of the batch that correspond to the
            inputs it was traced with.
        progress: whether to show a progress bar.
        checkpoint: a folder. A pass writes its running sums there every `every` batches; an interrupted pass over the same
            batches in the same order continues from them, and a finished pass deletes them. The file name depends on the
            criterion and the weights, but not on the loss and the data: use one folder for each of those.
        every: number of batches between two checkpoints.
        distributed: whether each process of torch.distributed's default process group gives its own share of the batches.
            Sums are then added over all processes, so that each has the scores of all data. Every process has to make the
            same calls on the same model. The batches count as if process r of n gave the batches r, r + n, r + 2n, ...

    Raises:
        PlanError: `every` is below 1, `batches` is a mapping or another `Data`, or `distributed` is set and there is no
            process group.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> batches = [(torch.randn(16, 4), torch.zeros(16, dtype=torch.long)) for _ in range(3)]
        >>> bough.score(graph, "apoz", Data(batches, progress=False))["0"].shape
        (8,)
    """

    batches: Iterable[Any]
    forward: Callable[[nn.Module, Any], Any] | None = None
    progress: bool = False
    checkpoint: str | Path | None = None
    every: int = 50
    distributed: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1:
            raise PlanError(f"Data(every={self.every}): must be at least 1")
        if self.distributed:
            require_process_group("Data(distributed=True)")
        batches = self.batches
        if isinstance(batches, Dataset):
            object.__setattr__(self, "batches", DataLoader(batches, _BATCH_SIZE))
        if isinstance(batches, (Data, Mapping)):
            raise PlanError(
                f"the data is a {type(batches).__name__}: give an iterable of batches, such as a list or a DataLoader"
            )

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches, with a progress bar if `progress` is set; for criteria of your own."""
        return iter(show_progress(self.batches, "data", _remaining(self.batches, 0)) if self.progress else self.batches)

    @property
    def once(self) -> bool:
        """True if the batches are a one-shot iterator."""
        return isinstance(self.batches, Iterator)

    def loss(self, graph: Graph, loss: Loss) -> Callable[[nn.Module, Any], Any]:
        """Return a loss of any calling convention as a function of (model, batch)."""
        return as_model_loss(loss, lambda model, batch: self.run(graph, batch))

    def run(self, graph: Graph, batch: Any, model: nn.Module | None = None) -> Any:
        """Return the output of the model for a batch.

        Args:
            graph: traced with inputs of the same form as the batch.
            batch: one batch of the data.
            model: a model that was cut from the graph's; the graph's own model unless given.

        Raises:
            PlanError: the model cannot run on the batch.
        """
        callee = graph.model if model is None else model
        with substituted(callee, lambda path, n: n):  # each batch starts from the same state
            return self._output(graph, batch, callee)

    def _output(self, graph: Graph, batch: Any, callee: nn.Module) -> Any:
        if self.forward is not None:
            return (
                self.forward(callee, batch) if isinstance(graph.call.method, str) else Call(batch, method=self.forward)(callee)
            )
        try:
            return graph.call.given(*traced_inputs(graph, batch))(callee)
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"{type(batch).__name__} {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise PlanError(f"{type(callee).__name__} can not run on a batch of the data ({what}): {reason[0]}") from error

    def stream(self, graph: Graph, sums: Sums, title: str) -> Iterator[Any]:
        """Yield the batches that `sums` does not cover yet; the caller adds to `sums` between two batches.

        After the last batch, sums of distributed data are added over all processes.

        Args:
            graph: of the model, for the name of the checkpoint file.
            sums: running sums, filled from the checkpoint of an interrupted pass; the number of samples is added here.
            title: of the pass, for the progress bar and the name of the checkpoint file.

        Raises:
            PlanError: there are no batches, a batch has no tensor, a sum is not finite at the end, or processes differ in
                the model or the pass.
            CheckpointError: the checkpoint file is damaged.
        """
        file = self._file(graph, title)
        done = load_sums(file, sums, graph.model) if file else 0
        batches = itertools.islice(iter(self.batches), done, None)
        count = done
        shown = self.progress and self._rank == 0
        for batch in show_progress(batches, title, _remaining(self.batches, done)) if shown else batches:
            sums.batch = count * self._processes + self._rank
            yield batch
            count += 1
            sums.plus(SAMPLES, float(batch_size(batch)))
            if file and count % self.every == 0:
                save_sums(file, sums, graph.model, count)
        if self.distributed:
            _add_over_processes(graph, sums, title)
        check_sums(self, sums, title)
        if file:
            file.unlink(missing_ok=True)

    def _file(self, graph: Graph, title: str) -> Path | None:
        """Return the checkpoint file of a pass, None without a checkpoint folder."""
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256(f"{graph.fingerprint} {title}".encode())
        digest.update((weights_digest(graph.model) or "").encode())
        share = f"-{self._rank}-of-{self._processes}" if self.distributed else ""
        return Path(self.checkpoint) / f"{digest.hexdigest()[:16]}{share}.safetensors"

    @property
    def _rank(self) -> int:
        return process_rank() if self.distributed else 0

    @property
    def _processes(self) -> int:
        return process_count() if self.distributed else 1


def check_sums(data: Data, sums: Sums, title: str) -> None:
    """Raise PlanError if a pass has seen no batches, or a sum is not finite."""
    if SAMPLES not in sums:
        again = " a second time: give a list or a DataLoader, which can be gone through again"
        raise PlanError(f"the data gives no batches{again if data.once else ''}")
    infinite = [name for name, value in sums.items() if not value.isfinite().all()]
    if infinite:
        raise PlanError(f"{title} is not finite ({infinite[0]}): the model or the loss gives NaN or infinity on this data")


def as_data(data: Data | Iterable[Any], one_process: str = "") -> Data:
    """Return `data` itself if it is a `Data`, else a `Data` of these batches.

    Args:
        data: batches.
        one_process: name of the caller, if it needs all batches in one process.

    Raises:
        PlanError: as `Data`, or the data is shared among several processes and the caller needs all of it.
    """
    if isinstance(data, Data) and data.distributed and one_process:
        raise PlanError(f"{one_process} takes no Data(distributed=True): give all batches to one process")
    return data if isinstance(data, Data) else Data(data)


def _add_over_processes(graph: Graph, sums: Sums, title: str) -> None:
    require_equal_in_processes((graph.fingerprint, len(graph.ops)), "the model or its traced run: trace the same in all")
    require_equal_in_processes(weights_digest(graph.model), "the weights: load the same in all processes")
    require_equal_in_processes(title, "the pass over data that it makes: make the same calls in all processes")
    add_over_processes(sums, sums.constants, parameter_device(graph.model))


def show_progress(batches: Iterable[Any], title: str, total: int | None) -> Iterable[Any]:
    """Return the same batches, with a progress bar while they are iterated over."""
    from rich.progress import track  # here because it takes a third of the time of `import bough`

    return track(batches, title, total=total)


def _remaining(batches: Iterable[Any], done: int) -> int | None:
    """Return the number of batches that are left, None if the iterable has no length."""
    try:
        return max(len(batches) - done, 0)  # type: ignore[arg-type]
    except TypeError:
        return None
