"""Models made from a configuration: what the same class makes of other integers tells what each of them decides.

Nothing here knows a family of models. A model that holds a `config`, and whose class takes that config alone, can be
built again: its large tensors without memory, the small ones that its constructor computes (tables, frequencies) with
their values.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bough.tracing.held import held_values
from bough.tracing.provenance import Path
from bough.tracing.trace import unchanged_rng

Field = tuple[str, ...]  # a config's attribute, and what leads on from there to an integer
_DEEPEST = 3
_FILLING = frozenset(("normal_", "uniform_", "trunc_normal_", "zero_", "fill_", "zeros_", "ones_", "constant_"))


@dataclass(frozen=True, eq=False, slots=True)
class Build:
    """What a class makes of a config.

    `floats` are the numbers that its modules hold; `computed` the buffers that no checkpoint holds, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    integers: dict[Path, int]
    floats: dict[Path, float]
    computed: dict[str, Tensor]

    def derives_alike(self, other: Build) -> bool:
        """Whether both have the same floats and computed buffers; a buffer of another size has to be constant."""
        if self.floats.keys() != other.floats.keys() or self.computed.keys() != other.computed.keys():
            return False
        return all(_same(v, other.floats[k]) for k, v in self.floats.items()) and all(
            _alike(v, other.computed[k]) for k, v in self.computed.items()
        )


class Recipe:
    """The class and the config that a model was made from."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        self._class = type(model)
        self._config = config
        self._made: dict[tuple[tuple[Field, int], ...], Build | None] = {}

    @staticmethod
    def of(model: nn.Module) -> Recipe | None:
        """The recipe of `model`, where its class makes of its config what the model is."""
        config = getattr(model, "config", None)
        if config is None or not isinstance(getattr(config, "__dict__", None), dict):
            return None
        recipe = Recipe(model, config)
        made = recipe.build({})
        return recipe if made is not None and made.shapes == _shapes(model) else None

    def fields(self) -> dict[Field, int | None]:
        """The integers from 2 upwards that the config holds, and its fields that are None, which may stand for one."""
        return dict(_fields(self._config, (), 0))

    def build(self, changes: Mapping[Field, int]) -> Build | None:
        """The class made with some fields changed; None where the config or the class refuses them."""
        key = tuple(sorted(changes.items()))
        if key not in self._made:
            self._made[key] = self._build(changes)
        return self._made[key]

    def _build(self, changes: Mapping[Field, int]) -> Build | None:
        try:
            with warnings.catch_warnings(), unchanged_rng(), torch.no_grad(), _EmptyHasNoMemory():
                warnings.simplefilter("ignore")
                return describe(self._class(_changed(self._config, changes)))
        except Exception:  # whatever a constructor raises, it refuses these numbers
            return None


def describe(model: nn.Module) -> Build:
    """A model's tensors and numbers."""
    integers = {path: value for path, value in held_values(model) if type(value) is int}
    floats: dict[Path, float] = {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if type(value) is float
    }
    saved = model.state_dict(keep_vars=True)
    computed = {n: b for n, b in model.named_buffers(remove_duplicate=False) if n not in saved}
    return Build(_shapes(model), integers, floats, computed)


class _EmptyHasNoMemory(TorchFunctionMode):
    """Tensors made without values, as parameters are, are made without memory, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        elif getattr(func, "__name__", "") in _FILLING:
            filled = args[0] if args else given.get("tensor")
            if isinstance(filled, Tensor) and filled.device.type == "meta":
                return filled
        return func(*args, **given)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(t.shape) for name, t in held}


def _fields(holder: Any, path: Field, depth: int) -> Iterator[tuple[Field, int | None]]:
    items = enumerate(holder) if isinstance(holder, (list, tuple)) else vars(holder).items()
    for key, value in items:
        if str(key).startswith("_"):
            continue
        here = (*path, str(key))
        if value is None or (type(value) is int and value > 1):
            yield here, value
        elif depth < _DEEPEST and (isinstance(value, (list, tuple)) or hasattr(type(value), "from_dict")):
            yield from _fields(value, here, depth + 1)


def _changed(config: Any, changes: Mapping[Field, int]) -> Any:
    """A copy of the config with some fields changed: as it reads after being saved, where it can be.

    Raises:
        ValueError: a field does not keep what it is given, because the config derives it from others.
    """
    made = copy.deepcopy(config)
    for field, value in changes.items():
        _set(made, field, value)
    if hasattr(made, "to_json_string") and hasattr(type(made), "from_dict"):
        read = type(made).from_dict(json.loads(made.to_json_string()))
        if hasattr(made, "_attn_implementation"):  # how the model was told to run is no part of what is saved
            read._attn_implementation = made._attn_implementation
        made = read
    for field, value in changes.items():
        if _get(made, field) != value:
            raise ValueError(f"the config derives {'.'.join(field)} from others")
    return made


def _get(holder: Any, field: Field) -> Any:
    for key in field:
        holder = holder[int(key)] if isinstance(holder, (list, tuple)) else getattr(holder, key)
    return holder


def _set(holder: Any, field: Field, value: int) -> None:
    owner = _get(holder, field[:-1])
    if isinstance(owner, tuple):
        items = [value if i == int(field[-1]) else v for i, v in enumerate(owner)]
        setattr(_get(holder, field[:-2]), field[-2], tuple(items))
    elif isinstance(owner, list):
        owner[int(field[-1])] = value
    else:
        setattr(owner, field[-1], value)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.device.type == "meta" or b.device.type == "meta":
        return a.shape == b.shape and a.device == b.device  # made without values: nothing is computed
    if a.shape == b.shape:
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    values = torch.cat([a.flatten(), b.flatten()])
    return bool((values == values[0]).all())
