"""Transfer of thread-local state of torch, and of context variables, from one thread to another.

A new thread starts without the autocast, inference mode, modes (`torch.device(...)` as a context, `set_default_device`) and
CUDA stream of the thread that starts it, so a model would compute something else there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import torch

from bough.torch_internals import modes_of_thread

Result = TypeVar("Result")


def in_state_of_caller(work: Callable[[], Result]) -> Callable[[], Result]:
    """Return a function that calls `work` in the state of the current thread, whichever thread it is called in.

    Autocast does not cache casts of weights there, because the weights may change between two runs.

    Example:
        >>> from threading import Thread
        >>> with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ...     work = in_state_of_caller(lambda: print(torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        >>> thread = Thread(target=work)
        >>> thread.start()
        True True
    """
    devices = ["cpu", *([] if (found := torch.accelerator.current_accelerator()) is None else [found.type])]
    casts = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    modes = modes_of_thread()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    context = copy_context()

    def run() -> Result:
        for device, enabled, dtype in casts:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(False)
        if stream is not None:
            torch.cuda.set_stream(stream)  # also sets the device of the stream
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(gradients))
            for mode in modes:
                stack.enter_context(mode)
            return work()

    return partial(context.run, run)
