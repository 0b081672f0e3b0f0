"""The training loop behind `finetune` and `distill`, which saves what a resumed run needs.

The state of a run consists of the weights, the state of the optimizer and of the regularizers, and counters. Learning rates and
all random draws (see seeding.py) follow from the counters, so neither a scheduler nor a generator is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from bough.errors import CheckpointError, TrainingError
from bough.recovery.training.dataloaders import training_loader
from bough.recovery.training.model_state import full_state, load_full_state
from bough.recovery.training.modes import restore_modes
from bough.recovery.training.optimizer_hooks import Attachment, Regularizer, check_optimizer
from bough.recovery.training.options import Trained, Training
from bough.recovery.training.run_log import RunLog, plot_curve, read_log
from bough.recovery.training.run_settings import object_settings, optimizer_settings
from bough.recovery.training.seeding import seed_all, start_epoch
from bough.recovery.training.state_files import is_sharding, state_files
from bough.storage import exclusive, read_state
from bough.tracing.capture.randomness import unchanged_rng

STATE_FILE, BEST_FILE, LOG_FILE, CURVE_FILE = "state.safetensors", "best.safetensors", "log.jsonl", "curve.png"


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """Functions that define what is learned from a batch.

    Attributes:
        forward: (model, batch) -> output.
        loss: (output, batch) -> mean over the samples, a scalar.
        evaluate: model -> validation metric; every process evaluates all of the validation data.
        callback: called with the line of each step.
        settings: further values that decide what is learned; a run is resumed only with the same ones.
        trained: the part of the model whose parameters the user's optimizer must have; all of it unless given.
        quantization: settings of quantization-aware training, which decide what is learned as well.
    """

    forward: Callable[[nn.Module, Any], Any]
    loss: Callable[[Any, Any], Tensor]
    evaluate: Callable[[nn.Module], float] | None = None
    callback: Callable[[dict[str, Any]], object] | None = None
    settings: Sequence[Any] = ()
    trained: nn.Module | None = None
    quantization: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "forward", "evaluate", "callback"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise TrainingError(f"{name}={function!r} can not be called: give a function")


@dataclass(slots=True)
class _Counters:
    """Position of a run. `batch` and `loss` (a sum over batches) belong to the current epoch; `worse` counts epochs since the
    best one. The field names are the keys of the saved state."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    worse: int = 0
    done: bool = False
    epochs: list[dict[str, Any]] = field(default_factory=list)


class TrainingRun:
    """One training run of a model, in place; call the object to run it.

    Args:
        model: is trained.
        data: as `train` of `finetune`.
        task: forward pass, loss and metric.
        training: the options.
        optimizer: the user's, if any.
        regularizers: attached to the optimizer during the run.
        accelerator: of the library accelerate.

    Raises:
        TrainingError: arguments that do not fit together, or data that cannot be used.
    """

    def __init__(
        self, model: nn.Module, data: Any, task: TrainingTask, training: Training, optimizer: Optimizer | None,
        regularizers: Sequence[Regularizer], accelerator: Any,
    ) -> None:  # fmt: skip
        self.task, self.training, self.regularizers = task, training, tuple(regularizers)
        if training.patience is not None and task.evaluate is None:
            raise TrainingError(f"Training(patience={training.patience}) needs evaluate=model -> metric, to be measured by")
        _check_graphs(model, self.regularizers)
        self.accelerator = accelerator
        self.folder = None if training.folder is None else Path(training.folder)
        loader, self.batches = training_loader(data, training)
        draws_batches = hasattr(loader.batch_sampler, "generator")  # a batch sampler of the user's that draws whole batches
        inner = getattr(loader.batch_sampler, "sampler", None) or loader.sampler
        self.sampler: Any = loader.batch_sampler if draws_batches else inner
        self._original_generator = getattr(self.sampler, "generator", None)
        if optimizer is not None:
            check_optimizer(optimizer, (task.trained or model).parameters(), "the model that is trained")
        self.raw_optimizer = optimizer or training.optimizer_for(model)
        self.learning_rates = [float(g["lr"]) for g in self.raw_optimizer.param_groups]
        self.raw_model, self._original_forward = model, vars(model).get("forward")
        self.loader = _prepare_loader(self.accelerator, loader)
        self.model, self.optimizer = _prepare(self.accelerator, model, task, self.raw_optimizer, self.regularizers)
        self.files = state_files(model, self.optimizer, self.accelerator)
        self.settings = {
            "optimizer's options": optimizer_settings(self.raw_optimizer, self.learning_rates), "loss": list(task.settings),
            "regularizers": [object_settings(r) for r in self.regularizers], "evaluate": task.evaluate is not None,
            "quantization": None if task.quantization is None else dict(task.quantization),
            "batch size": loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 0,
        }  # fmt: skip
        self.attachments: list[Attachment] = []
        self.counters = _Counters()
        self.best_state: dict[str, Any] | None = None  # used if there is no folder
        self.log: Callable[[dict[str, Any]], object] = lambda line: None

    def __call__(self) -> Trained:
        """Train, or continue the run in the folder; the model ends with its best weights.

        Raises:
            TrainingError: the loss or the metric is not finite, or the folder holds another run.
            CheckpointError: the state in the folder is damaged.
        """
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = torch.Generator()  # the same for any number of processes; seeded in each epoch
        locked = self.folder if self.accelerator.is_main_process else None  # only the main process writes to the folder
        try:
            for regularizer in self.regularizers:
                self.attachments.append(regularizer.attach(self.raw_optimizer))
            with exclusive(locked, TrainingError), unchanged_rng(), restore_modes(self.raw_model), _progress(self) as self.tick:
                resumed = self._resume()
                while not self.counters.done:
                    self._run_epoch()
                self._load_best()
                self._plot()
        finally:
            self._release()
        counters = self.counters
        stopped_early = len(counters.epochs) < self.training.epochs
        return Trained(
            counters.step, tuple(counters.epochs), counters.best, counters.best_epoch, stopped_early, resumed
        )  # fmt: skip

    def _release(self) -> None:
        """Detach the regularizers and undo what accelerate and the schedule changed, except for the weights."""
        for attachment in self.attachments:
            attachment.remove()
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = self._original_generator
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self._original_forward is None:
            vars(self.raw_model).pop("forward", None)  # unwrapping leaves the method of the class as an attribute

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.training.epochs * math.ceil(self.batches / self.accelerator.gradient_accumulation_steps)

    def _run_epoch(self) -> None:
        """Train for one epoch, or for the rest of a resumed one."""
        counters, accelerator = self.counters, self.accelerator
        self.model.train()
        start_epoch(self.loader, self.sampler, self.training.seed, counters.epoch)
        remaining = accelerator.skip_first_batches(self.loader, counters.batch)  # also for 0, so that the draws are the same
        for batch in remaining:
            seed_all(self.training.seed, "step", counters.epoch, counters.batch, accelerator.process_index)
            with accelerator.accumulate(self.model):
                loss = self.task.loss(self.task.forward(self.model, batch), batch)
                value = self._finite_loss(loss)
                accelerator.backward(loss)
                if accelerator.sync_gradients and self.training.clip is not None:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip)
                factor = self.training.factor(counters.step, self.total_steps)
                for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
                    group["lr"] = rate * factor
                self.optimizer.step()
                self.optimizer.zero_grad()
            counters.batch += 1
            counters.loss += value
            if accelerator.sync_gradients:
                self._finish_step(value)
        self._finish_epoch()

    def _finish_step(self, loss: float) -> None:
        """Count a step; log it, save the state and call the callback where due."""
        counters = self.counters
        counters.step += 1
        line = {"step": counters.step, "epoch": counters.epoch, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"]}
        if counters.step % self.training.log_every == 0:
            self.log(line)
        if self.training.save_every and counters.step % self.training.save_every == 0:
            self._save()
        self.tick()
        if self.task.callback is not None:
            with restore_modes(self.model):  # a callback that evaluates leaves the model in eval mode
                self.task.callback(line)

    def _finish_epoch(self) -> None:
        """Evaluate, keep the weights if they are the best, and save the state."""
        counters = self.counters
        metric = self._evaluate()
        mean_loss = counters.loss / max(counters.batch, 1)
        counters.epochs.append({"epoch": counters.epoch, "step": counters.step, "loss": mean_loss, "metric": metric})
        if metric is not None and all(getattr(r, "settled", True) for r in self.regularizers):
            sign = 1 if self.training.better == "max" else -1
            if counters.best is None or sign * metric > sign * counters.best:
                counters.best, counters.best_epoch, counters.worse = metric, counters.epoch, 0
                self._keep_best()
            else:
                counters.worse += 1
        self.log(counters.epochs[-1])
        counters.epoch, counters.batch, counters.loss = counters.epoch + 1, 0, 0.0
        counters.done = counters.epoch == self.training.epochs or (
            self.training.patience is not None and counters.worse >= self.training.patience
        )
        self._save()

    def _evaluate(self) -> float | None:
        """Return the validation metric, averaged over processes; None without `evaluate`."""
        if self.task.evaluate is None:
            return None
        self.raw_model.eval()
        with torch.no_grad():
            result = self.task.evaluate(self.raw_model)
        self.files.after_evaluation()
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError):
            raise TrainingError(f"evaluate gave {result!r:.80}: it must give one number, the metric") from None
        if math.isnan(value):
            raise TrainingError(f"the validation metric is nan after epoch {self.counters.epoch}")
        return self._process_mean(torch.tensor(value, dtype=torch.float64, device="cpu"))

    def _finite_loss(self, loss: Tensor) -> float:
        """Return the loss averaged over processes; raise before the backward pass if it is not finite."""
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainingError(
                f"the loss is {what}{'' if getattr(loss, 'requires_grad', False) else ' without a gradient'}: it must be one "
                "number with a gradient, the mean over a batch"
            )
        value = self._process_mean(loss.detach())
        if not math.isfinite(value):
            step, epoch = self.counters.step + 1, self.counters.epoch
            raise TrainingError(f"the loss is {value} in step {step} (epoch {epoch}): lower lr, or set clip")
        return value

    def _process_mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over all processes."""
        if self.accelerator.num_processes == 1:
            return float(value)
        return float(self.accelerator.reduce(value.to(self.accelerator.device), "mean"))

    def _keep_best(self) -> None:
        """Keep the current weights as the best ones, in the folder or in memory."""
        if self.folder is None:
            state = full_state(self.raw_model)
            self.best_state = {k: v.detach().clone() if isinstance(v, Tensor) else deepcopy(v) for k, v in state.items()}
        else:
            self.files.write(self.folder / BEST_FILE, self.counters.step, {}, optimizer=False)

    def _load_best(self) -> None:
        """Load the best weights into the model, if a best epoch is known."""
        if self.counters.best is None:
            return
        self.accelerator.wait_for_everyone()
        if self.folder is None:
            assert self.best_state is not None
            load_full_state(self.raw_model, self.best_state)
        else:
            self.files.load(self.folder / BEST_FILE, read_state(self.folder / BEST_FILE), optimizer=False)

    def _save(self) -> None:
        """Write the state of the run to the folder."""
        if self.folder is None:
            return
        extra = {
            "regularizers": [r.state_dict() for r in self.regularizers], "counters": asdict(self.counters),
            "options": self._identity(),
        }  # fmt: skip
        self.files.write(self.folder / STATE_FILE, self.counters.step, extra, optimizer=True)

    def _identity(self) -> dict[str, Any]:
        """Return the settings that a run must have to be resumed from this one's state."""
        shapes = {n: [str(p.dtype), *p.shape] for n, p in self.raw_model.named_parameters()}
        return {**self.training.identity(), **self.settings, "batches": self.batches, "model": shapes}

    def _resume(self) -> int:
        """Load the state in the folder, if there is one; return the number of steps that it covers."""
        if self.folder is None:
            return 0
        if (self.folder / STATE_FILE).is_file():
            state = read_state(self.folder / STATE_FILE)
            changed = [k for k, v in self._identity().items() if state.get("options", {}).get(k) != v]
            if changed:
                raise TrainingError(
                    f"{self.folder} holds a run with another {changed[0]}: give that, another folder, or delete this one"
                )
            try:
                self.files.load(self.folder / STATE_FILE, state, optimizer=True)
                for regularizer, saved in zip(self.regularizers, state["regularizers"], strict=True):
                    regularizer.load_state_dict(saved)
                self.counters = _Counters(**state["counters"])
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                raise CheckpointError(f"the state in {self.folder} does not fit this run: {error}") from None
        if self.accelerator.is_main_process:
            self.log = RunLog(self.folder / LOG_FILE, self.counters.step, self.counters.epoch)
        return self.counters.step

    def _plot(self) -> None:
        """Plot the loss curve to the folder."""
        if self.folder is not None and self.accelerator.is_main_process:
            plot_curve(read_log(self.folder / LOG_FILE), self.folder / CURVE_FILE, type(self.raw_model).__name__)


def _check_graphs(model: nn.Module, regularizers: Sequence[Regularizer]) -> None:
    """Raise TrainingError if a regularizer's graph is of another model than the one that is trained."""
    trained = {id(p) for p in model.parameters()}
    for r in regularizers:
        graph = getattr(r, "graph", None)
        if graph is not None and not any(id(p) in trained for p in graph.model.parameters()):
            raise TrainingError(f"the {type(r).__name__} is of another model than the one that is trained: trace that one")


def _prepare(
    accelerator: Any, model: nn.Module, task: TrainingTask, optimizer: Optimizer, regularizers: Sequence[Regularizer]
) -> tuple[nn.Module, Any]:  # fmt: skip
    """Return the model and the optimizer as accelerate adapts them; FSDP2 shards the part that is trained.

    Raises:
        TrainingError: something that needs whole parameters, and FSDP2 shards them.
    """
    if not is_sharding(accelerator):
        prepared, adapted = accelerator.prepare(model, optimizer)
        return prepared, adapted
    part = model if task.trained is None else task.trained
    needing_whole = {
        "regularizers": bool(regularizers), "quantization": task.quantization is not None,
        "lora": any(type(m).__module__.startswith("peft.") for m in part.modules()),
        "Distillation(match=...)": len(list(model.parameters())) > len(list(part.parameters())),
        "an optimizer that has taken steps": bool(optimizer.state),
    }  # fmt: skip
    given = next((name for name, needs in needing_whole.items() if needs), None)
    if given is not None:
        raise TrainingError(f"FSDP2 shards the parameters, and {given} needs whole ones: leave one of the two out")
    prepared, adapted = accelerator.prepare(part, optimizer)  # the part is called on its own as well, to be evaluated
    return prepared if task.trained is None else model, adapted


def _prepare_loader(accelerator: Any, loader: DataLoader[Any]) -> Any:
    """Return the loader as accelerate splits it among processes."""
    try:
        return accelerator.prepare(loader)
    except ValueError as error:
        raise TrainingError(f"accelerate can not share the batches of train among processes: {error}") from None


@contextmanager
def _progress(run: TrainingRun) -> Iterator[Callable[[], object]]:
    """Yield a function that updates the progress bar, if one is shown."""
    if not (run.training.progress and run.accelerator.is_main_process):
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        bar = progress.add_task("train", total=run.total_steps)
        yield lambda: progress.update(bar, completed=run.counters.step)
