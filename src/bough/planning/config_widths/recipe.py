"""Models made from a configuration: what the same class makes of other integers shows what each of them decides.

A model that holds a `config`, and whose class takes that config alone, can be built again: its large tensors without
memory, the small ones that its constructor computes (tables, frequencies) with their values.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bough.errors import PlanError
from bough.planning.config_widths.config import Field, changed, curious, integers
from bough.tracing.capture.attribute_numbers import attribute_numbers
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.provenance import Path
from bough.tracing.capture.randomness import unchanged_rng

Changes = Mapping[Field, int]
_FILLING = frozenset(("normal_", "uniform_", "trunc_normal_", "zero_", "fill_", "zeros_", "ones_", "constant_"))


@dataclass(frozen=True, eq=False, slots=True)
class Build:
    """What a class makes of a config.

    `floats` are the numbers that its modules hold; `computed` the tensors that no checkpoint holds, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    integers: dict[Path, int]
    floats: dict[Path, float]
    computed: dict[str, Tensor]

    def computes_alike(self, other: Build) -> bool:
        """Whether both compute the same tensors; one of another size has to be constant."""
        return self.computed.keys() == other.computed.keys() and all(
            _alike(v, other.computed[k]) for k, v in self.computed.items()
        )

    def floats_unlike(self, other: Build) -> dict[Path, float]:
        """The floats that are others there."""
        return {p: v for p, v in self.floats.items() if p in other.floats and not _same(v, other.floats[p])}


class Recipe:
    """The class and the config that a model was made from."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        self._class: Callable[[Any], nn.Module] = type(model)
        self._config = config
        self._made: dict[tuple[tuple[Field, int], ...], Build | None] = {}

    @staticmethod
    def of(model: nn.Module) -> Recipe | None:
        """The recipe of `model`; None where it holds no config.

        Raises:
            PlanError: it holds one, and its class does not make of it what the model is.
        """
        config = getattr(model, "config", None)
        if config is None or not isinstance(getattr(config, "__dict__", None), dict):
            return None
        recipe = Recipe(model, config)
        why = recipe.mismatch(model)
        if why is None:
            return recipe
        raise PlanError(
            f"uniform=True: {type(model).__name__} made again from its config alone is not this model ({why}), so no config "
            "can tell what a cut leaves. Plan without uniform=True, and keep the model with bough.save and bough.load"
        )

    def mismatch(self, model: nn.Module) -> str | None:
        """Return in which tensor `model` differs from what its class makes of its config; None where it does not."""
        try:
            made = self.make({})
        except Exception as error:  # whatever a constructor raises
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        here = shapes(model)
        apart = sorted(n for n in made.shapes.keys() | here.keys() if made.shapes.get(n) != here.get(n))
        if not apart:
            return None
        return f"it has {apart[0]} of shape {made.shapes.get(apart[0])}, and the model of shape {here.get(apart[0])}"

    def fields(self) -> dict[Field, int | None]:
        """The integers of the config, its fields that are None, and those (None) that the class asks for in vain."""
        config, asked = curious(self._config)
        try:
            with _lightly():
                self._class(config)
        except Exception:  # a class that insists on the very type of its config gives nothing
            asked = []
        return {**dict.fromkeys(asked), **integers(self._config)}

    def build(self, changes: Changes) -> Build | None:
        """The class made with some fields changed; None where the config or the class refuses them."""
        key = tuple(sorted(changes.items()))
        if key not in self._made:
            try:
                self._made[key] = self.make(changes)
            except Exception:  # whatever a constructor raises, it refuses these numbers
                self._made[key] = None
        return self._made[key]

    def make(self, changes: Changes, stay: Mapping[Field, Iterable[int]] | None = None) -> Build:
        """As `build`, with of some lists of the config only some items; raises what the config or the class raises."""
        with _lightly():
            return describe(self._class(changed(self._config, changes, stay)))


def config_mismatch(model: nn.Module) -> str | None:
    """Return why a model's class can not make the model from its config; None where it can, so that stock code loads it."""
    config = getattr(model, "config", None)
    if config is None or not isinstance(getattr(config, "__dict__", None), dict):
        return "it holds no config"
    return Recipe(model, config).mismatch(model)


def describe(model: nn.Module) -> Build:
    """A model's tensors and numbers."""
    numbers = {path: value for path, value in attribute_numbers(model) if type(value) is int}
    floats: dict[Path, float] = {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if type(value) is float
    }
    computed = {n: t for n, t, _, saved in model_tensors(model) if not saved}
    return Build(shapes(model), numbers, floats, computed)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters and buffers, by each of their names."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(t.shape) for name, t in named}


@contextmanager
def _lightly() -> Iterator[None]:
    with warnings.catch_warnings(), unchanged_rng(), torch.no_grad(), _EmptyHasNoMemory():
        warnings.simplefilter("ignore")
        yield


class _EmptyHasNoMemory(TorchFunctionMode):
    """Tensors made without values, as parameters are, are made without memory, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        elif getattr(func, "__name__", "") in _FILLING or getattr(func, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else given.get("tensor")
            if isinstance(filled, Tensor) and filled.device.type == "meta":
                return filled
        return func(*args, **given)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.device.type == "meta" or b.device.type == "meta":
        return a.shape == b.shape and a.device == b.device  # made without values: nothing is computed
    if a.shape == b.shape:
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    values = torch.cat([a.flatten(), b.flatten()])
    return bool((values == values[0]).all())
