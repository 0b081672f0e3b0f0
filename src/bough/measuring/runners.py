"""Runs a model in the backend in which it is timed: eager, compiled by torch, or onnxruntime."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from bough.calls import FORWARD, as_calls
from bough.errors import TraceError
from bough.torch_internals import fail_on_recompile_limit

Run = Callable[[], object]
BACKENDS = ("eager", "compile", "onnxruntime")


def runner(model: nn.Module, example_inputs: Any, backend: str = "eager") -> Run:
    """Return a function that runs `model` once on its inputs and waits for the result. Call it in eval mode.

    Args:
        model, example_inputs: as for `bough.trace`; of several calls the first one is run.
        backend: "eager"; "compile" (`torch.compile`); "onnxruntime" (exported to ONNX, on the CPU, with as many threads as
            torch has).

    Raises:
        TraceError: an unknown backend, a package that it needs is not installed, or compiling or exporting fails.

    Example:
        >>> import torch
        >>> run = runner(torch.nn.Linear(4, 2), torch.randn(1, 4))
        >>> run().shape
        torch.Size([1, 2])
    """
    if backend not in BACKENDS:
        raise TraceError(f"backend={backend!r} is unknown: use one of {', '.join(map(repr, BACKENDS))}")
    call = as_calls(example_inputs)[0]
    args, kwargs = call.args, call.kwargs
    if backend == "onnxruntime":
        if call.method != FORWARD:
            raise TraceError(
                f"backend='onnxruntime' exports forward, and the first call is {call}: give a call of forward first"
            )
        return _onnxruntime(model, args, kwargs)
    callee = call.bound(model)
    callee = _compiled(callee, args, kwargs) if backend == "compile" else callee

    def run() -> object:
        with torch.inference_mode():
            result = callee(*args, **kwargs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return result

    return run


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into eval mode within the context, and restore the mode of each module after it."""
    modes = [(m, m.training) for model in models for m in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _compiled(method: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., object]:
    """Compile the model for these shapes, through a function with a code object of its own.

    torch keeps a limited number of compiled versions per code object: later versions are compiled for dynamic shapes, and
    beyond the eighth the code runs uncompiled. Models that are timed one after the other would count as such versions.
    """

    def call(*args: Any, **kwargs: Any) -> object:
        return method(*args, **kwargs)

    function = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    compiled: Callable[..., object] = torch.compile(function, dynamic=False)
    try:
        with fail_on_recompile_limit(), torch.inference_mode():
            compiled(*args, **kwargs)
    except Exception as error:
        raise TraceError(
            f"{getattr(method, '__name__', type(method).__name__)} can not be compiled: {type(error).__name__}: {error}"
        ) from error
    return compiled


def _onnxruntime(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    try:
        import onnx  # noqa: F401 - torch.onnx needs it, and says so less clearly
        import onnxruntime
    except ImportError as error:
        raise TraceError(f"backend='onnxruntime' needs {error.name}: pip install bough[onnx]") from None
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself; it takes milliseconds, the newer one seconds
            torch.onnx.export(model, args, file, kwargs=kwargs or None, dynamo=False, verbose=False)  # type: ignore[arg-type]
    except Exception as error:
        raise TraceError(f"{type(model).__name__} can not be exported to ONNX: {type(error).__name__}: {error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    feed = {i.name: t.detach().cpu().numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feed)
