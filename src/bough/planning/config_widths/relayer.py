"""What a model made from a config needs when layers are left out: the class is asked again.

`depth.bookkeeping` guesses by names which integers count a list's layers. Here, the guesses that the config holds are
tried, all and fewer, until the class makes the very tensors that are left; what its modules then hold is what they get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

from bough.errors import PlanError
from bough.graph import Graph
from bough.planning.config_widths.config import Field
from bough.planning.config_widths.recipe import Build, Recipe
from bough.planning.depth import entry
from bough.tracing.capture.attribute_numbers import holds
from bough.tracing.capture.provenance import key_of, path_of

_CONFIG = ("", "config")
Guess = tuple[Field, int | list[int]]  # a field becomes an integer, or a list of which some items stay


def relayered(graph: Graph, recipe: Recipe, start: Build) -> Graph:
    """`graph`, without some of its layers, with notes of what the class holds at the config that says so.

    Raises:
        PlanError: no config is found at which the class makes what is left.
    """
    names = _Names(graph)
    wanted = {names.after(n) for n in start.shapes if names.stays(n)}
    apart: set[str] = set()
    for guesses in _tries(graph):
        changes = {f: n for f, n in guesses if isinstance(n, int)}
        stay = {f: n for f, n in guesses if isinstance(n, list)}
        try:
            made = recipe.make(changes, stay)
        except Exception:  # whatever the config or the class raises, it refuses this
            continue
        if made.shapes.keys() == wanted:
            renamed = {(names.before(p[0]), *p[1:]): n for p, n in made.integers.items()}
            numbers = {key_of(p): n for p, n in renamed.items() if start.integers.get(p) != n and holds(graph.model, p)}
            lists = {key_of((*_CONFIG, *f)): items for f, items in stay.items()}
            others = {k: items for k, items in graph.layer_notes[1].items() if not k.startswith(":config:")}
            return replace(graph, layer_notes=(numbers, {**others, **lists}))
        apart = apart or (made.shapes.keys() ^ wanted)
    gone = ", ".join(x.name for x in graph.left_out)
    raise PlanError(
        f"uniform=True: no config found can say that {gone} is left out"
        + (f" (the class still makes other tensors: {min(apart)})" if apart else "")
        + ". Leave out others (often the last layers can be told), or plan without uniform=True and keep the model with "
        "bough.save and bough.load"
    )


def _tries(graph: Graph) -> Iterator[tuple[Guess, ...]]:
    """All guesses about the config, then fewer and fewer."""
    numbers, lists = graph.layer_notes
    notes: dict[str, int | list[int]] = {**numbers, **lists}
    guesses = [(path_of(key)[2:], value) for key, value in notes.items() if key.startswith(":config:")]
    for n in range(len(guesses), 0, -1):
        yield from combinations(guesses, n)


class _Names:
    """The names of modules and tensors before and after layers are left out."""

    def __init__(self, graph: Graph) -> None:
        self._gone = tuple(f"{x.name}." for x in graph.left_out)
        modules = dict(graph.model.named_modules())
        self._places: dict[str, dict[str, str]] = {}  # list -> key -> key afterwards
        for container in dict.fromkeys(x.container for x in graph.left_out if x.container is not None):
            keys = [k for k in modules[container]._modules if f"{entry(container, k)}." not in self._gone]
            self._places[container] = {k: str(i) for i, k in enumerate(keys)}

    def stays(self, name: str) -> bool:
        return not f"{name}.".startswith(self._gone)

    def after(self, name: str) -> str:
        return _renamed(name, self._places)

    def before(self, name: str) -> str:
        return _renamed(name, {c: {new: old for old, new in keys.items()} for c, keys in self._places.items()})


def _renamed(name: str, places: Mapping[str, Mapping[str, str]]) -> str:
    parts = name.split(".")
    result: list[str] = []
    for i, key in enumerate(parts):
        keys = places.get(".".join(parts[:i]), {})
        result.append(keys.get(key, key))
    return ".".join(result)
