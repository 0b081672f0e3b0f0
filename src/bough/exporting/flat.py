"""A model as a function from a flat list of named tensors to a flat list of named tensors, which is what files can hold.

Caches, dicts, dataclasses and outputs of other models are taken apart and put together around the model, by the same walk that
tracing uses, so that none of their classes must be known to `torch.export`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bough.calls import Call, as_calls
from bough.errors import ExportError
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.tree import output_tensors, tensors_within


class FlatModel(nn.Module):
    """A model that takes and returns tuples of tensors.

    Attributes:
        model: the model.
        input_names: a name for each tensor in the example inputs, such as "x" or "past_key_values.layers.0.keys".
        output_names: a name for each tensor that the model returns; known after the first run.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        super().__init__()
        self.model = model
        self._call = (one_call(example_inputs),)  # in a tuple, so that a module in it is no submodule
        self.input_names = tuple(_named_inputs(model, self._call[0]))
        self.output_names: tuple[str, ...] = ()
        self._written: frozenset[int] = frozenset()  # inputs that the model writes into, such as a cache of fixed size

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """The tensors of the example inputs."""
        return self.flatten(self._call[0])

    def flatten(self, inputs: Any) -> tuple[Tensor, ...]:
        """Return the tensors of inputs that are structured as the example inputs.

        Raises:
            ExportError: they hold other tensors.
        """
        call = one_call(inputs)
        names = tuple(_named_inputs(self.model, call))
        if names != self.input_names:
            raise ExportError(f"the inputs hold {', '.join(names)}; the example inputs hold {', '.join(self.input_names)}")
        return tuple(t.detach() for t in tensors_within((call.args, call.kwargs)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model; each tensor takes the place of the one in the example inputs."""
        call = self._call[0]
        given = call.args, call.kwargs
        own = [t.clone() if i in self._written else t for i, t in enumerate(tensors)]
        by_id = {id(old): new for old, new in zip(tensors_within(given), own, strict=True)}
        args, kwargs = with_tensors(given, lambda old: by_id[id(old)])
        found = output_tensors(call.given(args, kwargs)(self.model))
        if not found:
            raise ExportError(f"{type(self.model).__name__} returns no tensor")
        self.output_names = _plain_names(found, "output", self.input_names)
        return tuple(found.values())

    @torch.no_grad()
    def run(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Run the model eagerly on copies of tensors; {name: output}."""
        self._written = frozenset()
        copies = [t.clone() for t in tensors]
        before = [t._version for t in copies]
        outputs = self(*copies)
        self._written = frozenset(i for i, t in enumerate(copies) if t._version != before[i])
        return dict(zip(self.output_names, (t.detach().clone() for t in outputs), strict=True))


def one_call(example_inputs: Any) -> Call:
    """Return the one call that example inputs are.

    Raises:
        ExportError: they are several.
    """
    calls = as_calls(example_inputs)
    if len(calls) != 1:
        raise ExportError(f"a file holds one call of a model, and example_inputs are {len(calls)}: export each by itself")
    return calls[0]


def _named_inputs(model: nn.Module, call: Call) -> dict[str, Tensor]:
    """Return the tensors of a call by name."""
    bound = call.bound(model)
    names = _parameters(model.forward if bound is model else bound, len(call.args))
    found = output_tensors({**dict(zip(names, call.args, strict=True)), **call.kwargs})
    return dict(zip(_plain_names(found, "input"), found.values(), strict=True))


def _parameters(forward: Callable[..., Any], count: int) -> list[str]:
    """Return names for the first positional arguments of a function; those of *args are numbered."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    return [*names, *(f"{several}_{i}" for i in range(count - len(names)))]


def _plain_names(paths: Sequence[str] | dict[str, Any], otherwise: str, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Return paths such as "['a'].layers[0]" as names such as "a.layers.0", each once and none in `taken`.

    Example:
        >>> _plain_names(["", "['a'].layers[0]", "[1]"], "output")
        ('output', 'a.layers.0', 'output_1')
    """
    names: list[str] = []
    for path in paths:
        name = ".".join(re.findall(r"[^\[\]'\".]+", path))
        name = f"{otherwise}_{name}" if name[:1].isdigit() else name or otherwise
        while name in names or name in taken:
            name += "_out" if name in taken else "_"
        names.append(name)
    return tuple(names)
