"""Options of a training run, and the record of its result."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from bough.arguments import check_fields
from bough.errors import TrainingError

_CHOICES = {
    "optimizer": ("adamw", "sgd"), "schedule": ("cosine", "linear", "constant"), "precision": ("no", "bf16"),
    "better": ("max", "min"),
}  # fmt: skip
_MAY_DIFFER = ("folder", "progress", "save_every", "log_every")  # between a run and its resumption


@dataclass(frozen=True, slots=True)
class Training:
    """Options of `finetune` and `distill`.

    The defaults were the best single setting on a ResNet-20, a vision transformer, a GRU and a Llama that were cut to half:
    see "What the defaults are" in docs/recovery.md, and benchmarks/training_defaults.py.

    Attributes:
        epochs: number of passes over the data.
        lr: peak learning rate; the default is for "adamw"; "sgd" needs a higher one, such as 0.01.
        optimizer: "adamw" or "sgd" (with Nesterov momentum).
        weight_decay: of parameters with two or more dims; biases and normalizations do not decay.
        momentum: of SGD.
        schedule: "cosine" or "linear" decay to zero, or "constant"; after a linear warm-up.
        warmup: length of the warm-up as a share of all steps, from 0 to below 1.
        batch_size: samples per batch over all processes together, if the data is a dataset.
        accumulate: batches per optimizer step.
        clip: maximum norm of the gradient; None for no limit.
        precision: "no" (the precision of the weights) or "bf16" (autocast to bfloat16).
        start: a name for the initial weights, if their shapes do not identify them: a run with another name is not resumed.
        seed: of the order of the data and of all random draws.
        better: whether a larger ("max") or a smaller ("min") metric is better.
        patience: epochs without a better metric after which training stops; None to run all epochs.
        folder: for the log (`log.jsonl`), the loss curve (`curve.png`), the best weights and the state. A killed run with this
            folder is resumed; a finished one is only read.
        save_every: steps between two saved states, in addition to those at the ends of epochs.
        log_every: steps between two lines of the log.
        progress: whether to show a progress bar.

    Raises:
        TrainingError: an option out of range.

    Example:
        >>> Training(epochs=3, schedule="linear", warmup=0.0).factor(5, 10)
        0.5
    """

    epochs: int = 10
    lr: float = 5e-4
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    clip: float | None = 1.0
    precision: str = "no"
    start: str = ""
    seed: int = 0
    better: str = "max"
    patience: int | None = None
    folder: str | os.PathLike[str] | None = None
    save_every: int | None = None
    log_every: int = 1
    progress: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainingError(f"Training({name}={getattr(self, name)!r}): use {' or '.join(map(repr, choices))}")
        for name in ("epochs", "batch_size", "accumulate", "patience", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value == value // 1 >= 1):
                raise TrainingError(f"Training({name}={value!r}): must be a whole number, at least 1")
        for name in ("lr", "warmup", "weight_decay", "momentum", "clip"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and not math.isnan(value)):
                raise TrainingError(f"Training({name}={value!r}): must be a number")
        check_fields(self)
        if not 0 < self.lr < math.inf or not 0 <= self.warmup < 1:
            raise TrainingError(f"Training(lr={self.lr}, warmup={self.warmup}): lr above 0, warmup from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.momentum < 1:
            raise TrainingError(
                f"Training(weight_decay={self.weight_decay}, momentum={self.momentum}): weight_decay not negative, momentum "
                "from 0 to below 1"
            )
        if self.clip is not None and not self.clip > 0:
            raise TrainingError(f"Training(clip={self.clip}): must be above 0, or None for none")

    def identity(self) -> dict[str, Any]:
        """Return the options that decide what is computed."""
        return {k: v for k, v in asdict(self).items() if k not in _MAY_DIFFER}

    def factor(self, step: int, total: int) -> float:
        """Return the learning rate at a step as a multiple of `lr`, from 0 to 1.

        Args:
            step: from 0.
            total: number of steps of the run.
        """
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return (step + 1) / (math.floor(warmup_steps) + 1)
        progress = (step - warmup_steps) / max(total - warmup_steps, 1)
        decay: dict[str, Callable[[], float]] = {
            "cosine": lambda: (1 + math.cos(math.pi * progress)) / 2,
            "linear": lambda: 1 - progress,
            "constant": lambda: 1.0,
        }
        return decay[self.schedule]()

    def optimizer_for(self, model: nn.Module) -> Optimizer:
        """Return a new optimizer of all parameters of a model that require a gradient.

        Raises:
            TrainingError: no parameter requires a gradient.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise TrainingError(f"no parameter of {type(model).__name__} requires a gradient: there is nothing to train")
        decayed = {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay}
        not_decayed = {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0}
        groups = [g for g in (decayed, not_decayed) if g["params"]]
        if self.optimizer == "adamw":
            return AdamW(groups, lr=self.lr)
        return SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)


@dataclass(frozen=True, slots=True)
class Trained:
    """Record of a training run; the model itself was trained in place and has its best weights.

    Attributes:
        steps: number of optimizer steps.
        epochs: one entry per epoch: {"epoch", "step", "loss", "metric"}, with the steps so far and the mean loss; the metric is
            None without `evaluate`.
        best: the best metric; None without a metric, or if no epoch counts because regularizers had not settled: then the
            model has the last weights.
        best_epoch: the epoch of the best metric.
        stopped_early: whether patience ended the run.
        resumed: the step from which the run was resumed, 0 for a new run.
        quantized: with `quantization`, the trained program in INT8, a `bough.Quantized`; the model itself was not changed.
    """

    steps: int
    epochs: tuple[dict[str, Any], ...]
    best: float | None
    best_epoch: int | None
    stopped_early: bool
    resumed: int
    quantized: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "quantized"}
        program = {} if self.quantized is None else {"quantized": self.quantized.to_dict()}
        return {**found, "epochs": [dict(e) for e in self.epochs], **program}

    def __str__(self) -> str:
        lines = [f"{'epoch':>5} {'steps':>8} {'loss':>12} {'metric':>12}"]
        for e in self.epochs:
            metric = "" if e["metric"] is None else f"{e['metric']:.6g}"
            lines.append(f"{e['epoch']:5} {e['step']:8} {e['loss']:12.6g} {metric:>12}")
        if self.best is not None:
            lines.append(f"best: {self.best:.6g} in epoch {self.best_epoch}{' (stopped early)' if self.stopped_early else ''}")
        if self.quantized is not None:
            lines.append(str(self.quantized))
        return "\n".join(lines)
