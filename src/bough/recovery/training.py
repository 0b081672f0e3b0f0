"""How to train, and what came of it: values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
_FREE = ("folder", "progress", "save_every", "log_every")  # may differ when a run is resumed


@dataclass(frozen=True, slots=True)
class Training:
    """Options of `finetune` and `distill`.

    The defaults are those that did best, taken together, on a ResNet-20, a vision transformer, a GRU and a Llama that were cut
    to half: see "What the defaults are" in docs/recovery.md, and benchmarks/training_defaults.py.

    Attributes:
        epochs: passes over the data.
        lr: highest learning rate; the default is for "adamw"; "sgd" needs more, such as 0.01.
        optimizer: "adamw" or "sgd" (with Nesterov momentum).
        weight_decay: of weights with two dims or more; biases and norms do not decay.
        momentum: of SGD.
        schedule: "cosine" or "linear" to zero, or "constant"; after a linear `warmup` over this share of all steps.
        batch_size: samples per batch over all processes together, where data comes as a dataset.
        accumulate: batches per step of the optimizer.
        clip: largest norm of the gradient; None for any.
        precision: "no" (as the weights are) or "bf16" (autocast to bfloat16).
        start: a name of what is trained, where its shapes do not tell: a run of another is not taken up.
        seed: of the data's order and all that is drawn.
        better: whether the metric is better when larger ("max") or smaller ("min").
        patience: epochs without a better metric after which training stops.
        folder: for the log (`log.jsonl`), the curve (`curve.png`), the best weights and the state: a run with this folder
            that was killed is resumed, and one that has ended is read.
        save_every: steps between states, besides those at the ends of epochs.
        log_every: steps between lines of the log.
        progress: show a progress bar.

    Raises:
        TrainingError: an option out of range.
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
        """The options that decide what is computed."""
        return {k: v for k, v in asdict(self).items() if k not in _FREE}

    def factor(self, step: int, total: int) -> float:
        """The share of `lr` at a step of `total`, from 0."""
        warm = self.warmup * total
        if step < warm:
            return (step + 1) / (math.floor(warm) + 1)
        done = (step - warm) / max(total - warm, 1)
        falling: dict[str, Callable[[], float]] = {
            "cosine": lambda: (1 + math.cos(math.pi * done)) / 2,
            "linear": lambda: 1 - done,
            "constant": lambda: 1.0,
        }
        return falling[self.schedule]()

    def optimizer_for(self, model: nn.Module) -> Optimizer:
        """A new optimizer of all parameters that require a gradient."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise TrainingError(f"no parameter of {type(model).__name__} requires a gradient: there is nothing to train")
        decayed = {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay}
        rest = {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0}
        groups = [g for g in (decayed, rest) if g["params"]]
        if self.optimizer == "adamw":
            return AdamW(groups, lr=self.lr)
        return SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training run; the model itself was trained in place, and has its best weights.

    `epochs`: one entry per epoch: its number, steps so far, mean loss and (where it was asked for) metric. `best`: the best
    metric, reached in `best_epoch`; None without one, and while regularizers are at work: then the weights are the last.
    `resumed`: the step that the run went on from, 0 for a new one.
    """

    steps: int
    epochs: tuple[dict[str, Any], ...]
    best: float | None
    best_epoch: int | None
    stopped_early: bool
    resumed: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "epochs": list(self.epochs)}

    def __str__(self) -> str:
        lines = [f"{'epoch':>5} {'steps':>8} {'loss':>12} {'metric':>12}"]
        for e in self.epochs:
            metric = "" if e["metric"] is None else f"{e['metric']:.6g}"
            lines.append(f"{e['epoch']:5} {e['step']:8} {e['loss']:12.6g} {metric:>12}")
        if self.best is not None:
            lines.append(f"best: {self.best:.6g} in epoch {self.best_epoch}{' (stopped early)' if self.stopped_early else ''}")
        return "\n".join(lines)
