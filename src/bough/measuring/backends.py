"""How a model is run when it is timed: eager, compiled by torch, or by onnxruntime."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from bough.errors import TraceError
from bough.tracing.trace import split_inputs

Run = Callable[[], object]
BACKENDS = ("eager", "compile", "onnxruntime")


def runner(model: nn.Module, example_inputs: Any, backend: str = "eager") -> Run:
    """A function that runs `model` once on its inputs, and waits for it. The model must be in eval mode while it runs.

    Args:
        model, example_inputs: as for `bough.trace`.
        backend: "eager"; "compile" (`torch.compile`); "onnxruntime" (exported to ONNX, on the CPU, with as many threads as
            torch has).

    Raises:
        TraceError: an unknown backend, a package that it needs is not installed, or compiling or exporting fails.
    """
    if backend not in BACKENDS:
        raise TraceError(f"backend={backend!r} is unknown: use one of {', '.join(map(repr, BACKENDS))}")
    args, kwargs = split_inputs(example_inputs)
    if backend == "onnxruntime":
        return _onnxruntime(model, args, kwargs)
    called = _compiled(model, args, kwargs) if backend == "compile" else model

    def run() -> object:
        with torch.inference_mode():
            result = called(*args, **kwargs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return result

    return run


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode meanwhile, each module's own mode after."""
    modes = [(m, m.training) for model in models for m in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., object]:
    """Compiled for these shapes, by a function of its own code.

    Of what runs the same code torch keeps a few versions, makes the later ones for shapes of any size, and runs what comes
    after the eighth uncompiled. Here it would take the models that are timed one after the other for such versions.
    """

    def call(*args: Any, **kwargs: Any) -> object:
        return model(*args, **kwargs)

    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    compiled: Callable[..., object] = torch.compile(own, dynamic=False)
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch.inference_mode():
            compiled(*args, **kwargs)
    except Exception as error:
        raise TraceError(f"{type(model).__name__} can not be compiled: {type(error).__name__}: {error}") from error
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
