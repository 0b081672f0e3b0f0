"""Check the arguments of public functions against their annotations, and show the call that was probably meant.

The annotations are the declaration: a public function begins with one line, a dataclass with one in `__post_init__`.

    def plan(graph: Graph, scores: Scores, budget: Budget | None = None) -> Plan:
        check_arguments(plan, locals())

So what a signature says and what is checked can not differ, and an argument that is added is checked as well. Ranges, names
and sizes are checked by the functions themselves.
"""

from __future__ import annotations

import collections.abc as abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import Parameter, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from bough.errors import ArgumentError

_EXAMPLES = {  # by the name of the argument, which means the same in all of bough
    "allocation": "'global' or bough.allocation.Greedy()",
    "allocations": "['global', bough.allocation.Greedy()]",
    "budget": "bough.Budget(macs='50%')",
    "budgets": "[bough.Budget(macs='50%')]",
    "build_model": "lambda: Net()",
    "callback": "lambda line: print(line['loss'])",
    "criteria": "['l2', bough.importance.Wanda()]",
    "criterion": "bough.importance.Magnitude(p=2)",
    "data": "torch.utils.data.DataLoader(dataset, batch_size=64)",
    "distillation": "bough.recovery.Distillation(temperature=2.0)",
    "dtype": "torch.float64",
    "energy": "bough.EnergyModel.of('int8')",
    "evaluate": "lambda model: accuracy(model)",
    "first": "bough.plan(graph, scores, budget)",
    "folder": "'out/'",
    "forward": "lambda model, batch: model(batch['x'])",
    "graph": "bough.trace(model, example_inputs)",
    "heartbeat": "20",
    "ignore": "['head', 'layer1.*', nn.Embedding]",
    "importance": "'l2' or bough.importance.Magnitude(p=2)",
    "loss": "lambda model, batch: cross_entropy(model(batch[0]), batch[1])",
    "measure": "lambda model: bough.measuring.latency(model, example_inputs).median",
    "only": "['layer1.*', nn.Linear]",
    "objectives": "{'accuracy': 'max', 'latency': 'min'}",
    "optimizer": "torch.optim.AdamW(model.parameters())",
    "original": "graph.cost()",
    "otherwise": "bough.importance.Magnitude(p=1)",
    "plan": "bough.plan(graph, scores, budget)",
    "planning": "functools.partial(bough.plan, round_to=8)",
    "recover": "lambda model, step: bough.finetune(model, train)",
    "result": "bough.prune(model, example_inputs, budget)",
    "schedule": "bough.recovery.geometric",
    "scores": "bough.score(graph, 'l2')",
    "second": "bough.plan(graph, scores, budget)",
    "table": "bough.LatencyTable.measure(graph)",
    "tie": "{'teacher.*': 'student.*'}",
    "train": "torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)",
    "training": "bough.Training(epochs=1)",
}
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", NoneType: "None"}
_SERIES = {abc.Mapping: "a dict", abc.Iterable: "an iterable", abc.Sequence: "a list"}
_INSTEAD = {"ExportedProgram": "take what its module() returns"}  # of a class by its name: it need not be imported
_CHECKED_BY_FUNCTIONS = (
    int,
    float,
    np.ndarray,
)  # values of a dict that functions check themselves, to name the one that is wrong
_LONGEST = 40  # characters of a value that a message shows


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check what `function` was called with (its `locals()`, before anything else is assigned) against its annotations.

    Raises:
        ArgumentError: an argument of another type; the message names function and argument, and shows what is meant.

    Example:
        >>> def shrink(budget: int) -> None:
        ...     check_arguments(shrink, locals())
        >>> shrink("50%")
        Traceback (most recent call last):
        bough.errors.ArgumentError: shrink(budget='50%'): budget must be a whole number, such as budget=bough.Budget(macs='50%')
    """
    where = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]
    _check(where, _annotations(function), given)


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their annotations, from its `__post_init__`; raises as `check_arguments`."""
    kind = type(instance)
    _check(kind.__name__, _annotations(kind.__init__), {f.name: getattr(instance, f.name) for f in fields(instance)})


def _check(where: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name in given and not _fits(given[name], hint):
            value, example = given[name], _EXAMPLES.get(name)
            advice = f", and {value.__name__} is a class: make an instance of it" if isinstance(value, type) else ""
            advice += f": {_INSTEAD[type(value).__name__]}" if type(value).__name__ in _INSTEAD else ""
            such = f", such as {name}={example}" if example else ""
            raise ArgumentError(f"{where}({name}={_shown(value)}): {name} must be {_described(hint)}{advice}{such}")


@cache
def _annotations(of: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of what a function takes, those of *args and **kwargs left out."""
    every = get_type_hints(of)
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return {n: every[n] for n, p in signature(of).parameters.items() if p.kind not in several and n in every}


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`, as far as can be seen without changing or using up the value."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Any or kind is object:
        return True
    if isinstance(kind, TypeVar):
        return _fits(value, kind.__bound__ or Any)
    if kind in (Union, UnionType):
        return any(_fits(value, x) for x in inner)
    if kind is Literal:
        return any(type(value) is type(x) for x in inner)  # which of them is the function's own check
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    if kind is abc.Callable:
        return callable(value) and (not isinstance(value, type) or _makes(value, *inner))
    if isinstance(value, type):  # the class in place of an instance
        return kind is type
    if kind is np.ndarray:
        return isinstance(value, (np.ndarray, Sequence)) or hasattr(value, "__array__")
    if kind is tuple:
        return isinstance(value, (tuple, list))  # as JSON has them
    if kind in (abc.Iterable, abc.Sequence):
        return _is_series(value, kind, *inner)
    if kind is abc.Mapping and inner:
        advice = (get_origin(inner[1]) or inner[1]) in _CHECKED_BY_FUNCTIONS
        return isinstance(value, kind) and (advice or all(_fits(x, inner[1]) for x in value.values()))
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, member) for member in _members(kind))
    return isinstance(value, kind)


def _makes(kind: type, taken: Any = ..., given: Any = Any) -> bool:
    """Whether a class does as a function: where nothing is taken (a builder), or where instances of it are to be given."""
    return taken == [] or (isinstance(given, type) and given is not object and issubclass(kind, given))


def _is_series(value: Any, kind: Any, of: Any = Any) -> bool:
    """Whether `value` is an iterable (or sequence) of `of`; a string is one of strings, what runs only once is not opened."""
    if isinstance(value, (str, bytes)):
        return of is str and kind is Iterable
    if isinstance(value, Mapping) and of is not Any:
        return False
    if not isinstance(value, kind) and not (kind is Iterable and hasattr(value, "__getitem__")):
        return False
    return not isinstance(value, (list, tuple, set, frozenset)) or all(_fits(x, of) for x in value)


def _members(protocol: type) -> list[str]:
    """The names that a protocol asks for."""
    return [n for n in (*vars(protocol), *protocol.__annotations__) if n == "__call__" or not n.startswith("_")]


def _described(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        *others, last = dict.fromkeys(_described(x) for x in inner)
        return f"{', '.join(others)} or {last}" if others else last
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind is abc.Callable:
        return "a function"
    if kind is np.ndarray:
        return "an array"
    if kind in _SERIES:
        return f"{_SERIES[kind]}{_items(inner[-1] if inner else Any)}"
    if kind in (Any, object):
        return "anything"
    name = f"{'torch ' * kind.__module__.startswith('torch')}{kind.__name__}" if isinstance(kind, type) else str(kind)
    return _NAMES.get(kind, f"{'an' if name[:1] in 'AEIO' else 'a'} {name}")


def _items(hint: Any) -> str:
    """What a series is of, where it is of one kind: ' of strings', ' of Budget'."""
    if not isinstance(hint, type) or hint in (object, Any):
        return ""
    return f" of {_NAMES[hint].removeprefix('a ')}s" if hint in (str, int, float) else f" of {hint.__name__}"


def _shown(value: Any) -> str:
    """A value in a few characters: short ones as they are written, others by their class."""
    if isinstance(value, type):
        return value.__name__
    text = repr(value) if value is None or isinstance(value, (str, bytes, Real, list, tuple, dict)) else ""
    return text if text and len(text) <= _LONGEST and "\n" not in text else f"<{type(value).__name__}>"
