"""A call of a model: a method and its arguments. Example inputs are one call or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import ArgumentError, TraceError

Method = str | Callable[..., Any]
FORWARD = "forward"
OBSERVED = "_bough_observed"
"""The key in a model's `__dict__` of what wraps a function that a call is made by, while `bough.calibration` observes calls."""
_LONGEST = 60  # characters of a call that a message shows


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False)
class Call:
    """One call of a model, written as the call itself is: `Call(x, task="b")` stands for `model(x, task="b")`.

    Every call starts from the state that the model is in when it is traced: what one call writes (caches, buffers,
    attributes) is undone before the next. Calls that follow each other in one state are one call of a function of the model:
    `Call(x, method=lambda model, x: [model.step(x), model.step(x)])`.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        method: the name of a method of the model, such as "encode", or of one of its modules ("decoder.generate"); or a
            function, which is called with the model before the other arguments. "forward" calls the model, hooks included.

    Raises:
        ArgumentError: `method` is neither text nor callable.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> calls = [bough.Call(torch.randn(1, 4)), bough.Call(torch.randn(5, 3, 4))]
        >>> [str(c) for c in calls]
        ['forward(float32[1, 4])', 'forward(float32[5, 3, 4])']
        >>> bough.prune(net, calls, bough.Budget(params="50%")).report.equal
        True
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: Method

    def __init__(self, /, *args: Any, method: Method = FORWARD, **kwargs: Any) -> None:
        self._set(args, kwargs, method)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: Method = FORWARD) -> Call:
        """Return a call of these arguments, whose keywords may have any name, such as "method"."""
        call = object.__new__(cls)
        call._set(args, kwargs, method)
        return call

    def _set(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: Method) -> None:
        if not callable(method) and not (isinstance(method, str) and method):
            raise ArgumentError(
                f"Call(method={method!r}): method must be the name of a method of the model, such as method='encode', or a "
                "function that is called with the model and the arguments"
            )
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", dict(kwargs))
        object.__setattr__(self, "method", method)

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return a call of the same method with other arguments."""
        return Call.of(args, kwargs, self.method)

    def bound(self, model: nn.Module) -> Callable[..., Any]:
        """Return what is called with the arguments.

        Raises:
            TraceError: `model` has no such method.
        """
        if not isinstance(self.method, str):
            observed = model.__dict__.get(OBSERVED)
            return partial(self.method if observed is None else observed(self.method), model)
        if self.method == FORWARD:
            return model
        try:
            found = attrgetter(self.method)(model)
        except AttributeError:
            raise TraceError(f"{type(model).__name__} has no method {self.method!r}, which Call(method=...) names") from None
        if not callable(found):
            raise TraceError(f"{self.method!r} of {type(model).__name__}, which Call(method=...) names, can not be called")
        return found  # type: ignore[no-any-return]

    def __call__(self, model: nn.Module) -> Any:
        """Make the call."""
        return self.bound(model)(*self.args, **self.kwargs)

    @property
    def name(self) -> str:
        """The method, by name."""
        return self.method if isinstance(self.method, str) else getattr(self.method, "__name__", type(self.method).__name__)

    def __str__(self) -> str:
        given = [_described(a) for a in self.args] + [f"{k}={_described(v)}" for k, v in self.kwargs.items()]
        text = f"{self.name}({', '.join(given)})"
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]}...)"

    __repr__ = __str__


def as_calls(example_inputs: Any) -> tuple[Call, ...]:
    """Return example inputs, in any form that `trace` takes, as calls.

    Raises:
        ArgumentError: a list of calls and other things.
    """
    if isinstance(example_inputs, Call):
        return (example_inputs,)
    if isinstance(example_inputs, Mapping):
        return (Call.of((), example_inputs),)
    if not isinstance(example_inputs, (tuple, list)):
        return (Call(example_inputs),)
    calls = [c for c in example_inputs if isinstance(c, Call)]
    if calls and len(calls) < len(example_inputs):
        other = next(type(c).__name__ for c in example_inputs if not isinstance(c, Call))
        raise ArgumentError(
            f"example_inputs holds calls and a {other}: give a list of bough.Call, or the arguments of one call"
        )
    return tuple(calls) or (Call(*example_inputs),)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    plain = isinstance(value, (str, bool, int, float, type(None), torch.dtype))
    return repr(value) if plain else type(value).__name__
