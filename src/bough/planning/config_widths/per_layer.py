"""The fields of a transformers config in which the layers of a cut model differ from it.

transformers 5.15 and later have `config.per_layer_config`, {layer: {field: value}}, which lists only what differs from the
config. Which field sets which width of a layer is found as for uniform plans: the class is built at other values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.planning.config_widths.config import Field, changed
from bough.planning.config_widths.recipe import Build, Recipe, describe

_DEPTH: Field = ("num_hidden_layers",)
Sizes = dict[tuple[str, ...], float]
"""The numbers that describe a part of a model: sizes of tensors' dims, and numbers that modules hold."""


def per_layer_config(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """Return the `per_layer_config` of a cut model, in the form in which transformers saves it.

    Returns:
        {layer: {field: value}}; None if the installed transformers has no such field, if parts of the model beside the layers
        differ from the config, or if no value of the fields makes the layers that were cut.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(getattr(type(config), "per_layer_config", None), property):
        return None
    prefix, whole = _layer_list(model, getattr(config, _DEPTH[0], None)), Recipe(model, config).build({})
    search = None if prefix is None or whole is None else _Search.of(model, config, prefix)
    if prefix is None or whole is None or search is None:
        return None
    cut = describe(model)
    if _difference(_outside(whole, prefix), _outside(cut, prefix)):
        return None
    overrides: dict[int, dict[str, int]] = {}
    for i in range(config.num_hidden_layers):
        found = search.fields_for(_difference(_inside(whole, prefix, i), _inside(cut, prefix, i)))
        if found is None:
            return None
        overrides |= {i: {field[0]: value for field, value in found.items()}} if found else {}
    made = copy.deepcopy(config)
    made.per_layer_config = overrides
    return dict(made.to_dict()["per_layer_config"])


def _layer_list(model: nn.Module, count: object) -> str | None:
    """Return the name of the only list of `count` modules."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True, slots=True)
class _Search:
    """A search for the fields that set widths of one layer, on builds of one layer.

    Attributes:
        recipe: makes builds of one layer.
        prefix: name of the list of layers.
        start: the build at the config's own values.
        fields: the fields of the config, with their values.
    """

    recipe: Recipe
    prefix: str
    start: Build
    fields: dict[Field, int | None]

    @staticmethod
    def of(model: nn.Module, config: Any, prefix: str) -> _Search | None:
        """Return the search; None if the class can not be built with one layer."""
        count = config.num_hidden_layers
        lists = [(k,) for k, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == count]
        try:
            recipe = Recipe(model, changed(config, {_DEPTH: 1}, {field: [0] for field in lists}))
        except (ValueError, TypeError, AttributeError):
            return None
        start = recipe.build({})
        return (
            None if start is None else _Search(recipe, prefix, start, {f: n for f, n in recipe.fields().items() if len(f) == 1})
        )

    def fields_for(self, wanted: Sizes) -> dict[Field, int] | None:
        """Return values of fields at which exactly the wanted numbers of a layer differ; None if none are found.

        Fields are set one after the other; each brings the layer nearer to what is wanted.
        """
        changes: dict[Field, int] = {}
        left = wanted
        while left:
            for field, value in self._candidates(changes, left):
                after = self._left({**changes, field: value}, wanted)
                if after is not None and len(after) < len(left):
                    changes, left = {**changes, field: value}, after
                    break
            else:
                return None
        return changes

    def _left(self, changes: Mapping[Field, int], wanted: Sizes) -> Sizes | None:
        """Return what the built layer still lacks of the wanted numbers; None if it can not be built so alone."""
        made = self.recipe.build(changes)
        if made is None or any(
            k[0] == "shape" for k in _difference(_outside(self.start, self.prefix), _outside(made, self.prefix))
        ):
            return None
        start = _inside(self.start, self.prefix, 0)
        return _difference(_inside(made, self.prefix, 0), {**start, **wanted})

    def _candidates(self, changes: Mapping[Field, int], left: Sizes) -> Iterator[tuple[Field, int]]:
        """Yield values in proportion to a size that is not as wanted; those of fields of this very size first."""
        start = _inside(self.start, self.prefix, 0)
        found: dict[tuple[Field, int], bool] = {}
        for before, after in sorted({(int(_at(start, k)), int(n)) for k, n in left.items() if k[0] == "shape"}):
            for field, value in self.fields.items():
                if value is None:
                    found.setdefault((field, after), False)
                elif field not in changes and before and value * after % before == 0:
                    found[field, value * after // before] = value == before
        yield from sorted(found, key=lambda pair: not found[pair])


def _numbers(build: Build) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield (name of the module or tensor, key within it, number) of a build, but for the numbers of its config."""
    for name, shape in build.shapes.items():
        yield from ((name, ("shape", str(dim)), size) for dim, size in enumerate(shape))
    for path, number in (*build.integers.items(), *build.floats.items()):
        if "config" not in path[1:2]:
            yield path[0], ("number", *map(str, path[1:])), number


def _inside(build: Build, prefix: str, layer: int) -> Sizes:
    """Return the numbers of one layer."""
    start = f"{prefix}.{layer}"
    return {(key[0], name[len(start) :], *key[1:]): n for name, key, n in _numbers(build) if f"{name}.".startswith(f"{start}.")}


def _outside(build: Build, prefix: str) -> Sizes:
    """Return the numbers of all that is no layer."""
    return {(key[0], name, *key[1:]): n for name, key, n in _numbers(build) if not f"{name}.".startswith(f"{prefix}.")}


def _difference(before: Sizes, after: Sizes) -> Sizes:
    """Return the numbers that are others afterwards."""
    return {k: _at(after, k) for k in before.keys() | after.keys() if _at(after, k) != _at(before, k)}


def _at(sizes: Sizes, key: tuple[str, ...]) -> float:
    """Return a number; 0 for a tensor that does not exist, 1 for a number that is not listed, as builds list those above 1."""
    return sizes.get(key, 0 if key[0] == "shape" else 1)
