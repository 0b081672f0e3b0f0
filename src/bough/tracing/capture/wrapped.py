"""Wrappers around the real module, and modules that can not be traced.

A wrapper that holds the real module in one attribute (`torch.compile`, `DistributedDataParallel`, `DataParallel`,
`AveragedModel`) is looked through: names in graphs and plans are those of the real module, so a plan made for the bare
model fits the wrapped one and the other way round. What has no tensors that can be sliced is refused, with what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bough.errors import TraceError
from bough.torch_internals import COMPILED_MODULE, is_traceable_wrapper_subclass

_HOLDERS = {  # class: the attribute that holds the real module
    COMPILED_MODULE[0]: COMPILED_MODULE[1],
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
}
_SHARDED = "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"
_PACKED = "GGUFParameter", "Params4bit", "Int8Params"
_OBSERVERS = "ObserverBase", "FakeQuantizeBase"
_QUANTIZED = tuple(
    f"{package}."
    for package in (
        "torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.intrinsic.qat", "torchao",
        "bitsandbytes", "auto_gptq", "awq", "optimum.quanto", "hqq",
    )
)  # fmt: skip


def unwrap(model: nn.Module) -> nn.Module:
    """The real module under any number of wrappers; `model` itself where there is none.

    Raises:
        TraceError: `model` is not a module.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 3)
        >>> unwrap(torch.nn.DataParallel(net)) is net
        True
    """
    while isinstance(model, nn.Module) and (attribute := _holds(model)) is not None:
        model = getattr(model, attribute)
    if not isinstance(model, nn.Module):
        raise TraceError(f"bough needs an nn.Module, and was given {type(model).__name__}")
    return model


def traceable(model: nn.Module) -> nn.Module:
    """The real module under wrappers, once it is known that it can be traced and cut.

    Raises:
        TraceError: a module or parameter inside can not be traced or sliced; the message says which, and what to do.
    """
    model = unwrap(model)
    for name, module in model.named_modules():
        why = _refused(module)
        if why is not None:
            place = f"the module {name!r}" if name else "the model"
            raise TraceError(f"{place} ({type(module).__name__}) {why}")
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            path = f"{name}.{key}" if name else key
            if nn.parameter.is_lazy(tensor):
                raise TraceError(f"{path} has no shape yet: run the model once, so that its lazy layers get theirs")
            if any(c.__name__ in _PACKED for c in type(tensor).__mro__):
                raise TraceError(
                    f"{path} is a {type(tensor).__name__}, whose bytes are packed values, which can not be sliced: load the "
                    "model in a floating type, cut it, then quantize it"
                )
            if tensor is not None and is_traceable_wrapper_subclass(tensor):
                raise TraceError(
                    f"{path} is a {type(tensor).__name__}, a tensor with an inner layout that can not be sliced: cut the model "
                    "first, then quantize, shard or wrap it"
                )
    return model


@contextmanager
def eagerly() -> Iterator[None]:
    """Runs what `torch.compile` has compiled as the Python it was compiled from."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it is slow
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def kept_by_reducer(model: nn.Module) -> bool:
    """Whether a wrapper around the real module keeps buckets of the parameters' present sizes."""
    while (attribute := _holds(model)) is not None:
        if type(model).__name__ == "DistributedDataParallel":
            return True
        model = getattr(model, attribute)
    return False


def _holds(model: nn.Module) -> str | None:
    return next((_HOLDERS[key] for c in type(model).__mro__ if (key := (c.__module__, c.__name__)) in _HOLDERS), None)


def _refused(module: nn.Module) -> str | None:
    """Why a module can not be traced, and what to do; None where it can."""
    kinds = [(c.__module__, c.__name__) for c in type(module).__mro__]
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by torch.jit, which hides its Python: cut the model first, then script or trace it"
    if any(name in _SHARDED for _, name in kinds):
        return "is sharded over processes: cut the model first, on one process or on the meta device, then shard it"
    if any(name == "DistributedDataParallel" for _, name in kinds):
        return "speaks to other processes when it runs: cut the model first, then wrap its parts"
    if any(name in _OBSERVERS and "quantiz" in where for where, name in kinds):
        return "observes values for quantization: cut the model first, then prepare it for quantization"
    if any(where.startswith(_QUANTIZED) for where, _ in kinds):
        return "is a part of a quantized model: cut the model first, then quantize it"
    hook = getattr(module, "_hf_hook", None)
    if hook is not None and any(getattr(h, "offload", False) for h in getattr(hook, "hooks", (hook,))):
        return (
            "has its weights offloaded, loaded by a hook as it runs: call accelerate.hooks.remove_hook_from_module(model, "
            "recurse=True) and load the weights first, or cut a model without hooks and dispatch the cut one"
        )
    return None
