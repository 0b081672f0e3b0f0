"""Calibration data: any iterable of batches, read in one streaming pass whose running sums can be taken up again."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bough.arguments import check_fields
from bough.errors import CheckpointError, PlanError
from bough.graph import Graph
from bough.importance.losses import called_with_model
from bough.storage import make_folder, read_state, write_state
from bough.tracing.fingerprint import weights_digest
from bough.tracing.tree import tensors_within

Loss = Callable[[Any, Any], Tensor]
"""(model, batch), or (output, batch) -> the mean loss over the batch, one number; see `bough.importance.losses`."""

SAMPLES = "#samples"
_BATCH_SIZE = 64


class Sums(dict[str, Tensor]):
    """Running sums by name."""

    def plus(self, name: str, value: Tensor | float, dtype: torch.dtype = torch.float64) -> None:
        """Adds to the sum called `name`, which is kept in `dtype`."""
        term = torch.as_tensor(value).detach().to(dtype)
        self[name] = self[name].to(term.device) + term if name in self else term.clone()

    @property
    def samples(self) -> float:
        return float(self[SAMPLES])


@dataclass(frozen=True, slots=True)
class Data:
    """Batches to calibrate on, and how to go through them.

    A batch is what a DataLoader or a tokenizer gives: a tensor, a tuple or list, a dict; the first dim of its first tensor
    numbers the samples. Memory is bounded by the sums of a criterion, whatever the number of batches.

    Attributes:
        batches: any iterable; criteria that are combined go through it once each. Of a torch Dataset, which gives samples,
            batches of 64 are made.
        forward: how a batch is given to the model; without it, as many of its parts as the model was traced with.
        progress: whether to show a bar.
        checkpoint: a folder. An interrupted pass writes its sums there, every `every` batches, and when it is made again
            on the same batches in the same order it goes on from there. A finished pass takes its file away. Criteria
            and weights are told apart, losses and data are not: give them folders of their own.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> batches = [(torch.randn(16, 4), torch.zeros(16, dtype=torch.long)) for _ in range(3)]
        >>> bough.score(graph, bough.importance.APoZ(), Data(batches, progress=False))["0"].shape
        (8,)
    """

    batches: Iterable[Any]
    forward: Callable[[nn.Module, Any], Any] | None = None
    progress: bool = False
    checkpoint: str | Path | None = None
    every: int = 50

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1:
            raise PlanError(f"Data(every={self.every}): must be at least 1")
        given = self.batches
        if isinstance(given, Dataset):
            object.__setattr__(self, "batches", DataLoader(given, _BATCH_SIZE))
        if isinstance(given, (Data, Mapping)):
            raise PlanError(
                f"the data is a {type(given).__name__}: give an iterable of batches, such as a list or a DataLoader"
            )

    def __iter__(self) -> Iterator[Any]:
        """The batches, under a bar where `progress` is set: what a criterion of your own goes through."""
        return iter(with_progress(self.batches, "data", _left(self.batches, 0)) if self.progress else self.batches)

    @property
    def once(self) -> bool:
        """Whether the batches can be gone through once only."""
        return isinstance(self.batches, Iterator)

    def loss(self, graph: Graph, loss: Loss) -> Callable[[nn.Module, Any], Any]:
        """Return a user's loss as a function of (model, batch)."""
        return called_with_model(loss, lambda model, batch: self.run(graph, batch))

    def run(self, graph: Graph, batch: Any, model: nn.Module | None = None) -> Any:
        """What the model returns for a batch: the graph's, or one that was cut from it.

        Raises:
            PlanError: the model can not run on it.
        """
        run = graph.model if model is None else model
        if self.forward is not None:
            return self.forward(run, batch)
        try:
            args, kwargs = as_traced(graph, batch)
            return run(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"{type(batch).__name__} {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise PlanError(f"{type(run).__name__} can not run on a batch of the data ({what}): {reason[0]}") from error

    def stream(self, graph: Graph, sums: Sums, title: str) -> Iterator[Any]:
        """The batches that `sums` have not seen, which counts their samples; the caller adds to `sums` meanwhile.

        Raises:
            PlanError: there are no batches, a batch without a tensor, or a sum that is not finite at the end.
        """
        file = self._file(graph, title)
        done = _load(file, sums, graph.model) if file else 0
        batches = itertools.islice(iter(self.batches), done, None)
        at = done
        for batch in with_progress(batches, title, _left(self.batches, done)) if self.progress else batches:
            yield batch
            at += 1
            sums.plus(SAMPLES, float(batch_size(batch)))
            if file and at % self.every == 0:
                _save(file, sums, graph.model, at)
        if not at:
            again = " a second time: give a list or a DataLoader, which can be gone through again"
            raise PlanError(f"the data gives no batches{again if self.once else ''}")
        broken = [name for name, value in sums.items() if not value.isfinite().all()]
        if broken:
            raise PlanError(f"{title} is not finite ({broken[0]}): the model or the loss gives NaN or infinity on this data")
        if file:
            file.unlink(missing_ok=True)

    def _file(self, graph: Graph, title: str) -> Path | None:
        if self.checkpoint is None:
            return None
        digest = hashlib.sha256(f"{graph.fingerprint} {title}".encode())
        digest.update((weights_digest(graph.model) or "").encode())
        return Path(self.checkpoint) / f"{digest.hexdigest()[:16]}.safetensors"


def of(data: Data | Iterable[Any]) -> Data:
    """Any iterable of batches as `Data`."""
    return data if isinstance(data, Data) else Data(data)


def as_traced(graph: Graph, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The parts of a batch that the model was traced with, as (args, kwargs)."""
    return parts_of(graph.model, batch, len(graph.args), tuple(graph.kwargs))


def parts_of(model: nn.Module, batch: Any, n: int, names: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The parts of a batch for the first `n` arguments of a model and for those called `names`.

    Of a tuple or list, the first ones (labels stay away); of a mapping, those of these names, or of those that the model's
    forward gives to its first arguments. Tensors go to the model's device.

    Raises:
        PlanError: the batch lacks a part; the message says which, and what it has.
    """
    home = home_of(model)
    if isinstance(batch, Mapping):
        positional = [] if not n else list(inspect.signature(model.forward).parameters)[:n]
        missing = [k for k in (*positional, *names) if k not in batch]
        if missing:
            raise PlanError(
                f"a batch lacks {missing[0]!r}, with which the model was traced; it has {', '.join(map(str, batch))}"
            )
        return tuple(moved(batch[k], home) for k in positional), {k: moved(batch[k], home) for k in names}
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) < n + len(names):
        raise PlanError(
            f"a batch of {len(parts)} parts for a model that was traced with {n + len(names)}: give Data(forward=...)"
        )
    given = tuple(moved(p, home) for p in parts)
    return given[:n], dict(zip(names, given[n:], strict=False))


def home_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def batch_size(batch: Any) -> int:
    """The number of samples in a batch: the first dim of its first tensor that has one."""
    first = next((t for t in tensors_within(batch) if t.dim()), None)
    if first is None or not len(first):
        raise PlanError(f"a batch ({type(batch).__name__}) holds no samples: its first tensor's first dim must number them")
    return len(first)


def samples(batch: Any) -> Iterator[Any]:
    """The batch's samples, each as a batch of one."""
    n = batch_size(batch)
    for i in range(n):
        yield _sample(batch, i, n)


def _sample(value: Any, i: int, n: int) -> Any:
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.dim() and len(value) == n else value
    if isinstance(value, Mapping):
        return type(value)({k: _sample(v, i, n) for k, v in value.items()})  # type: ignore[call-arg]
    if type(value) in (tuple, list):
        return type(value)(_sample(v, i, n) for v in value)
    return type(value)(*(_sample(v, i, n) for v in value)) if isinstance(value, tuple) else value


def moved(value: Any, home: torch.device) -> Any:
    """`value` with copies of its tensors (tuples, lists and mappings opened) on the device `home`: a model may change them."""
    if isinstance(value, Tensor):
        return value.to(home, copy=True)
    if type(value) in (tuple, list):
        return type(value)(moved(v, home) for v in value)
    return {k: moved(v, home) for k, v in value.items()} if isinstance(value, Mapping) else value


def with_progress(batches: Iterable[Any], title: str, total: int | None) -> Iterable[Any]:
    """Return the same batches, under a progress bar."""
    from rich.progress import track  # a third of the time that importing bough would take

    return track(batches, title, total=total)


def _left(batches: Iterable[Any], done: int) -> int | None:
    try:
        return max(len(batches) - done, 0)  # type: ignore[arg-type]
    except TypeError:
        return None


def _save(file: Path, sums: Sums, model: nn.Module, done: int) -> None:
    """Writes the sums, and beside each the name of a parameter on its device: the pass may go on where devices are called
    otherwise, or are not there."""
    named = {p.device: name for name, p in model.named_parameters()}
    beside = {key: named[value.device] for key, value in sums.items() if value.device in named}
    make_folder(file.parent)
    write_state(file, {"done": done, "sums": sums, "beside": beside})


def _load(file: Path, sums: Sums, model: nn.Module) -> int:
    """Reads sums, each onto the device of the parameter that it was beside; how many batches they have seen."""
    if not file.exists():
        return 0
    saved, parameters = read_state(file), dict(model.named_parameters())
    try:
        for key, value in saved["sums"].items():
            name = saved["beside"].get(key)
            sums[key] = value if name is None else value.to(parameters[name].device)
        return int(saved["done"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} has no running sums of this model ({error}): delete it, and the pass begins anew"
        ) from None
