"""The loop behind `finetune` and `distill`: accelerate trains; this counts, and keeps what a resumed run needs.

A run's state is its weights, the optimizer's and the regularizers' state, and counters. Learning rates follow from the
counters, and so does all that is drawn (see data.py), so there is no scheduler and no generator to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from bough.errors import CheckpointError, TrainingError
from bough.recovery.attach import Attachment, Regularizer, check_holds
from bough.recovery.batches import as_torch
from bough.recovery.data import generators_kept, seed_all, seeded, start_epoch
from bough.recovery.identity import optimizer_settings, settings
from bough.recovery.modes import modes_kept
from bough.recovery.records import Log, plot_curve, read_log
from bough.recovery.state import read_state, restore, whole_state, write_state
from bough.recovery.training import Trained, Training
from bough.storage import exclusive

STATE, BEST, LOG, CURVE = "state.safetensors", "best.safetensors", "log.jsonl", "curve.png"


@dataclass(frozen=True, slots=True)
class Task:
    """What a batch means: `forward(model, batch)` runs the model, `loss(output, batch)` is a mean over the samples.

    `evaluate(model)` is the validation metric; every process measures all of it. `callback(line)` is told of each step.
    `settings`: what else decides what is learned, as plain values. `trained`: the part of the model that an optimizer of the
    user's must hold; all of it unless given.
    """

    forward: Callable[[nn.Module, Any], Any]
    loss: Callable[[Any, Any], Tensor]
    evaluate: Callable[[nn.Module], float] | None = None
    callback: Callable[[dict[str, Any]], object] | None = None
    settings: Sequence[Any] = ()
    trained: nn.Module | None = None


@dataclass(slots=True)
class _Counters:
    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0
    loss: float = 0.0  # of the epoch, summed over batches
    best: float | None = None
    best_epoch: int | None = None
    worse: int = 0  # epochs since the best
    done: bool = False
    epochs: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run of `model`, in place."""

    def __init__(
        self, model: nn.Module, data: Any, task: Task, training: Training, optimizer: Optimizer | None,
        regularizers: Sequence[Regularizer], accelerator: Any,
    ) -> None:  # fmt: skip
        self.task, self.training, self.regularizers = task, training, tuple(regularizers)
        for name in ("loss", "forward", "evaluate", "callback"):
            given = getattr(task, name)
            if given is not None and not callable(given):
                raise TrainingError(f"{name}={given!r} can not be called: give a function")
        if training.patience is not None and task.evaluate is None:
            raise TrainingError(f"Training(patience={training.patience}) needs evaluate=model -> metric, to be measured by")
        _check_graphs(model, self.regularizers)
        self.accelerator = accelerator
        self.folder = None if training.folder is None else Path(training.folder)
        loader, self.batches = _loader(data, training)
        drawing = hasattr(loader.batch_sampler, "generator")  # one of the user's that draws whole batches
        inner = getattr(loader.batch_sampler, "sampler", None) or loader.sampler
        self.sampler: Any = loader.batch_sampler if drawing else inner
        self._generator = getattr(self.sampler, "generator", None)
        if optimizer is not None:
            check_holds(optimizer, (task.trained or model).parameters(), "the model that is trained")
        raw = optimizer or training.optimizer_for(model)
        self.rates = [float(g["lr"]) for g in raw.param_groups]
        self.plain, self._forward = model, vars(model).get("forward")
        self.loader = _shared_loader(self.accelerator, loader)
        self.model, self.optimizer = self.accelerator.prepare(model, raw)
        self.settings = {
            "optimizer's options": optimizer_settings(raw, self.rates), "loss": list(task.settings),
            "regularizers": [settings(r) for r in self.regularizers], "evaluate": task.evaluate is not None,
            "batch size": loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 0,
        }  # fmt: skip
        self.attached: list[Attachment] = []
        self.at = _Counters()
        self.best: dict[str, Any] | None = None  # kept in memory where there is no folder
        self.log: Callable[[dict[str, Any]], object] = lambda line: None
        self.raw = raw

    def __call__(self) -> Trained:
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = torch.Generator()  # one for all numbers of processes; seeded in each epoch
        own = self.folder if self.accelerator.is_main_process else None  # the only process that writes there
        try:
            for regularizer in self.regularizers:
                self.attached.append(regularizer.attach(self.raw))
            with exclusive(own, TrainingError), generators_kept(), modes_kept(self.plain), _bar(self) as self.tick:
                resumed = self._resume()
                while not self.at.done:
                    self._epoch()
                self._take_best()
                self._plot()
        finally:
            self._let_go()
        early = len(self.at.epochs) < self.training.epochs
        return Trained(self.at.step, tuple(self.at.epochs), self.at.best, self.at.best_epoch, early, resumed)

    def _let_go(self) -> None:
        """Leaves the model and the optimizer as they came, but for what was learned."""
        for attached in self.attached:
            attached.remove()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = self._generator
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self._forward is None:
            vars(self.plain).pop("forward", None)  # what unwrapping leaves is the class's own

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.training.epochs * math.ceil(self.batches / self.accelerator.gradient_accumulation_steps)

    def _epoch(self) -> None:
        at, here = self.at, self.accelerator
        self.model.train()
        start_epoch(self.loader, self.sampler, self.training.seed, at.epoch)
        for batch in here.skip_first_batches(self.loader, at.batch):  # also for none, so that all draws come in one order
            seed_all(self.training.seed, "step", at.epoch, at.batch, here.process_index)
            with here.accumulate(self.model):
                loss = self.task.loss(self.task.forward(self.model, batch), batch)
                value = self._finite(loss)
                here.backward(loss)
                if here.sync_gradients and self.training.clip is not None:
                    here.clip_grad_norm_(self.model.parameters(), self.training.clip)
                factor = self.training.factor(at.step, self.total)
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * factor
                self.optimizer.step()
                self.optimizer.zero_grad()
            at.batch += 1
            at.loss += value
            if here.sync_gradients:
                self._stepped(value)
        self._epoch_ends()

    def _stepped(self, loss: float) -> None:
        at = self.at
        at.step += 1
        line = {"step": at.step, "epoch": at.epoch, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"]}
        if at.step % self.training.log_every == 0:
            self.log(line)
        if self.training.save_every and at.step % self.training.save_every == 0:
            self._save()
        self.tick()
        if self.task.callback is not None:
            with modes_kept(self.model):  # one that measures leaves the model in eval mode
                self.task.callback(line)

    def _epoch_ends(self) -> None:
        at = self.at
        metric = self._measured()
        at.epochs.append({"epoch": at.epoch, "step": at.step, "loss": at.loss / max(at.batch, 1), "metric": metric})
        if metric is not None and all(getattr(r, "settled", True) for r in self.regularizers):
            sign = 1 if self.training.better == "max" else -1
            if at.best is None or sign * metric > sign * at.best:
                at.best, at.best_epoch, at.worse = metric, at.epoch, 0
                self._keep_best()
            else:
                at.worse += 1
        self.log(at.epochs[-1])
        at.epoch, at.batch, at.loss = at.epoch + 1, 0, 0.0
        at.done = at.epoch == self.training.epochs or (
            self.training.patience is not None and at.worse >= self.training.patience
        )
        self._save()

    def _measured(self) -> float | None:
        if self.task.evaluate is None:
            return None
        self.plain.eval()
        with torch.no_grad():
            found = self.task.evaluate(self.plain)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise TrainingError(f"evaluate gave {found!r:.80}: it must give one number, the metric") from None
        if math.isnan(value):
            raise TrainingError(f"the validation metric is nan after epoch {self.at.epoch}")
        return self._shared(torch.tensor(value, dtype=torch.float64, device="cpu"))

    def _finite(self, loss: Tensor) -> float:
        """The loss over all processes; nothing is learned from one that is not finite."""
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainingError(
                f"the loss is {what}{'' if getattr(loss, 'requires_grad', False) else ' without a gradient'}: it must be one "
                "number with a gradient, the mean over a batch"
            )
        value = self._shared(loss.detach())
        if not math.isfinite(value):
            at = self.at
            raise TrainingError(f"the loss is {value} in step {at.step + 1} (epoch {at.epoch}): lower lr, or set clip")
        return value

    def _shared(self, value: Tensor) -> float:
        """The mean over all processes."""
        if self.accelerator.num_processes == 1:
            return float(value)
        return float(self.accelerator.reduce(value.to(self.accelerator.device), "mean"))

    def _keep_best(self) -> None:
        state = whole_state(self.plain)
        if self.folder is None:
            self.best = {k: v.detach().clone() if isinstance(v, Tensor) else deepcopy(v) for k, v in state.items()}
        elif self.accelerator.is_main_process:
            write_state(self.folder / BEST, {"model": state})

    def _take_best(self) -> None:
        if self.at.best is None:
            return
        self.accelerator.wait_for_everyone()
        best = self.best if self.folder is None else read_state(self.folder / BEST)["model"]
        assert best is not None
        restore(self.plain, best)

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        state = {
            "model": whole_state(self.plain), "optimizer": self.optimizer.state_dict(),
            "regularizers": [r.state_dict() for r in self.regularizers], "counters": asdict(self.at),
            "options": self._identity(),
        }  # fmt: skip
        write_state(self.folder / STATE, state)

    def _identity(self) -> dict[str, Any]:
        shapes = {n: [str(p.dtype), *p.shape] for n, p in self.plain.named_parameters()}
        return {**self.training.identity(), **self.settings, "batches": self.batches, "model": shapes}

    def _resume(self) -> int:
        """Takes up the state in the folder, if there is one; the step it is of."""
        if self.folder is None:
            return 0
        if (self.folder / STATE).is_file():
            state = read_state(self.folder / STATE)
            changed = [k for k, v in self._identity().items() if state.get("options", {}).get(k) != v]
            if changed:
                raise TrainingError(
                    f"{self.folder} holds a run with another {changed[0]}: give that, another folder, or delete this one"
                )
            try:
                restore(self.plain, state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                for regularizer, own in zip(self.regularizers, state["regularizers"], strict=True):
                    regularizer.load_state_dict(own)
                self.at = _Counters(**state["counters"])
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                raise CheckpointError(f"the state in {self.folder} does not fit this run: {error}") from None
        if self.accelerator.is_main_process:
            self.log = Log(self.folder / LOG, self.at.step, self.at.epoch)
        return self.at.step

    def _plot(self) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            plot_curve(read_log(self.folder / LOG), self.folder / CURVE, type(self.plain).__name__)


def _check_graphs(model: nn.Module, regularizers: Sequence[Regularizer]) -> None:
    own = {id(p) for p in model.parameters()}
    for r in regularizers:
        graph = getattr(r, "graph", None)
        if graph is not None and not any(id(p) in own for p in graph.model.parameters()):
            raise TrainingError(f"the {type(r).__name__} is of another model than the one that is trained: trace that one")


def _loader(data: Any, training: Training) -> tuple[DataLoader[Any], int]:
    """A loader of the training data, and how many batches it gives."""
    data = as_torch(data)
    if not isinstance(data, DataLoader):
        if not isinstance(data, IterableDataset) and hasattr(data, "__len__") and not len(data):
            raise TrainingError("train is empty: the dataset has no samples")
        data = DataLoader(data, training.batch_size, shuffle=not isinstance(data, IterableDataset))
    if data.batch_sampler is None and not isinstance(data.dataset, IterableDataset):
        raise TrainingError("train has batch_size=None, which accelerate can not take: give the DataLoader a batch_sampler")
    try:
        batches = len(data)
    except TypeError:
        raise TrainingError("the length of train is unknown: its dataset needs __len__, for the schedule") from None
    if not batches:
        raise TrainingError("train is empty: it gives no batch")
    return seeded(data, training.seed), batches


def _shared_loader(accelerator: Any, loader: DataLoader[Any]) -> Any:
    try:
        return accelerator.prepare(loader)
    except ValueError as error:
        raise TrainingError(f"accelerate can not share the batches of train among processes: {error}") from None


@contextmanager
def _bar(run: Run) -> Iterator[Callable[[], object]]:
    if not (run.training.progress and run.accelerator.is_main_process):
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        shown = progress.add_task("train", total=run.total)
        yield lambda: progress.update(shown, completed=run.at.step)
