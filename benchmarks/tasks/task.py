"""A network with the data that accuracy after a cut, and training after it, are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from benchmarks.cifar import predicted


@dataclass(frozen=True)
class Task:
    """A trained model, its data and its metric.

    Attributes:
        model: the dense model, trained, in eval mode.
        calibration: batches (input, label) of training data that is not augmented; token ids alone for language models. Only
            criteria that need labels read them.
        loss: (model, batch) -> mean over a calibration batch.
        measure: model -> figures on test data, with the number of samples; `metric` names the one that counts.
        choose: model -> `metric` on validation data, which is neither trained, calibrated nor tested on: by this figure, and
            never by the test, one of several models or recipes is chosen.
        field: the field of `Cost` that budgets bound.
        ignore: modules whose groups stay whole.
        lower_is_better: whether a smaller metric is better.
        train: (small, model) distills `small` in place by a known recipe; only where that takes minutes.
        train_set: makes the dataset for training, of pairs (input, label), augmented; its items are drawn from torch's
            global generator, as `bough.finetune` expects.
        choose_samples: (model, share) -> [samples], of which `choose` is the mean, on this share of the validation data.
        output_loss: (output, batch) -> mean over the batch, as `bough.finetune(loss=)` takes it.
    """

    model: nn.Module
    calibration: list[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    measure: Callable[[nn.Module], dict[str, float]]
    choose: Callable[[nn.Module], float]
    field: str
    ignore: tuple[str, ...] = ()
    lower_is_better: bool = False
    train: Callable[[nn.Module, nn.Module], Any] | None = None
    metric: str = "accuracy"
    train_set: Callable[[], Dataset[Any]] | None = None
    output_loss: Callable[[Any, Any], Tensor] | None = None
    choose_samples: Callable[[nn.Module, float], Tensor] | None = None


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return label_loss(model(batch[0]), batch)


def label_loss(output: Tensor, batch: Any) -> Tensor:
    """Cross-entropy of logits [N, classes, ...] with labels [N, ...]."""
    return F.cross_entropy(output.float(), batch[1])


def pairs(x: Tensor, y: Tensor, size: int) -> list[Any]:
    """Batches (input, label) of `size` samples."""
    return list(zip(x.split(size), y.split(size), strict=True))


def right_in_part(x: Tensor, labels: Tensor) -> Callable[[nn.Module, float], Tensor]:
    """Return (model, share) -> [samples], 100 where the predicted class is right, of the first share of the samples."""

    def part(model: nn.Module, share: float) -> Tensor:
        n = max(1, round(share * len(x)))
        return 100.0 * (predicted(model, x[:n]) == labels[:n])

    return part


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Percent of the samples whose predicted class is `labels`."""
    return 100 * float((predicted(model, x) == labels).float().mean())
