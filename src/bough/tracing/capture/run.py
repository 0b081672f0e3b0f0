"""Make a call of a model under a handler of its operators, and leave the model as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bough.calls import Call
from bough.tracing.capture.attribute_numbers import substituted
from bough.tracing.capture.caches import fresh_caches
from bough.tracing.capture.execution import Execution
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.randomness import fixed_rng, unchanged_rng
from bough.tracing.capture.stream import Handler, Stream
from bough.tracing.capture.tree import Returned, state_names
from bough.tracing.capture.wrapped import eagerly


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, which looks at all that was made again and again, and finds that it is in use."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def run(
    handler: Handler, execution: Execution, model: nn.Module, call: Call, change: Any,
    prepare: Callable[[], None] | None = None, first: int = 0, after: Callable[[], None] | None = None,
) -> Returned:  # fmt: skip
    """Make a call of the model under `handler`, with the integers of modules as `change` says; return what its output has.

    `prepare` may change instance dictionaries and lists of modules before the run; this is undone, too. `first` is the
    number of the first op. `after` is called when the model has run, before what it left on its modules is undone. Where the
    execution says what is drawn, all random numbers are the same in every run.
    """
    args, kwargs = with_tensors((call.args, call.kwargs), execution.stand_in)
    collected = nullcontext() if execution.real else uncollected()
    drawn = unchanged_rng() if execution.draw is None else fixed_rng()
    with collected, drawn, torch.inference_mode(False), torch.no_grad(), substituted(model, change):
        if prepare is not None:
            prepare()
        method = call.bound(model)
        try:
            with fresh_caches(model):
                with Stream(handler, first), eagerly():
                    returned = Returned.of(method(*args, **kwargs), state_names(model, method))
                if after is not None:
                    after()
                return returned
        finally:
            execution.restore()


def switch(model: nn.Module) -> None:
    """Puts all modules into the mode that the model is not in, by their instance dictionaries."""
    other = not model.training
    for module in model.modules():
        module.__dict__["training"] = other
