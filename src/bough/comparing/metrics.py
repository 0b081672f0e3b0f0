"""What a user's `evaluate` returns: numbers by name, or one number per sample, whose mean is the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bough.errors import ComparisonError

Evaluate = Callable[[nn.Module], Any]
"""model -> a metric, or {name: metric} of which the first is sorted by; a metric is a number, or an array [samples]."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one model.

    Attributes:
        values: {name: metric}.
        errors: {name: standard error} of the metrics that are means over samples.
    """

    values: dict[str, float]
    errors: dict[str, float]


def measured(evaluate: Evaluate, model: nn.Module) -> Metrics:
    """Return what `evaluate` gives of a model; a metric without a name goes by the function's name.

    Raises:
        ComparisonError: it gives no number, or one that is not finite.

    Example:
        >>> import torch
        >>> def accuracy(model):
        ...     return torch.tensor([True, False, True, True])
        >>> measured(accuracy, torch.nn.Identity())
        Metrics(values={'accuracy': 0.75}, errors={'accuracy': 0.25})
    """
    given = evaluate(model)
    named = given if isinstance(given, Mapping) else {getattr(evaluate, "__name__", "metric"): given}
    try:
        arrays = {("metric" if str(name) == "<lambda>" else str(name)): _array(value) for name, value in named.items()}
    except (TypeError, ValueError, RuntimeError):
        raise ComparisonError(
            f"evaluate gave {given!r}: a number is wanted, or an array of one number per sample, or a dict of these"
        ) from None
    values = {name: float(array.mean()) for name, array in arrays.items()}
    broken = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if broken or not values:
        raise ComparisonError(f"evaluate gave {', '.join(broken) or 'no metric'}: finite numbers are wanted")
    several = {name: array for name, array in arrays.items() if array.size > 1}
    return Metrics(values, {name: float(array.std(ddof=1) / math.sqrt(array.size)) for name, array in several.items()})


def _array(value: Any) -> NDArray[np.float64]:
    """Return a metric as an array [samples], of one value where it is a number."""
    if not isinstance(value, (Tensor, np.ndarray, list, tuple)):
        return np.array([float(value)])
    array = torch.as_tensor(value).detach().to("cpu", torch.float64).numpy()
    if array.ndim > 1 or not array.size:
        raise ValueError
    return array.reshape(-1)
