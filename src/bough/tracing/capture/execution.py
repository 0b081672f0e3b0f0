"""Stand-ins for the model's tensors, and how an op is run on them.

*Shapes only* (the default): parameters, buffers of floats and inputs of floats are meta tensors, all else (integers,
masks, positions) is real and small; an op that touches a meta tensor gives meta tensors. No arithmetic, no memory.
*Real*: everything is real; the model's own tensors are read, never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bough.ops import spec
from bough.torch_internals import OperatorBase, without_dispatch
from bough.tracing.capture.randomness import as_drawn, draws_one
from bough.tracing.capture.state import attribute_values
from bough.tracing.capture.stream import OpCall, Runner, swap, tensors_in


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool, bool]]:
    """(name, tensor, is a parameter, is in the state dict) of each tensor that the model holds, each once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        transient = module._non_persistent_buffers_set
        places = [(k, v, True, True) for k, v in module._parameters.items()]
        places += [(k, v, False, k not in transient) for k, v in module._buffers.items()]
        places += [(k, v, False, False) for k, v in module.__dict__.items() if isinstance(v, Tensor)]
        for key, value, parameter, saved in places:
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield dot + key, value, parameter, saved
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for key, value in attribute_values(module, (Tensor,)):
            if id(value) not in seen:
                seen.add(id(value))
                yield dot + key, value, False, False


def _strided(t: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    if t.layout != torch.strided:
        return torch.empty(shape or tuple(t.shape), dtype=t.dtype, device="meta")
    if shape is None or shape == tuple(t.shape):
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")
    return torch.empty(shape, dtype=t.dtype, device="meta")


class Execution:
    """Stand-ins by the identity of what they stand for."""

    def __init__(
        self, model: nn.Module, real: bool, shapes: dict[str, tuple[int, ...]] | None = None, draw: float | None = None
    ) -> None:
        self.real = real
        self.draw = draw  # what every single random number between 0 and 1 is; None: as it comes
        self.drew = False
        self.stand_ins: dict[int, Tensor] = {}
        self._originals: list[Tensor] = []
        self._written: list[tuple[Tensor, Tensor]] = []  # parameters that a run on real values wrote, with their values
        self.names: dict[str, Tensor] = {}
        self.meta = False
        self.model_device = torch.device("cpu")
        strided = [p for p in model.parameters() if p.layout == torch.strided and not p.is_meta] if real else []
        self._parameters = {p.untyped_storage().data_ptr(): p for p in strided}
        for i, (name, tensor, _, _) in enumerate(model_tensors(model)):
            if i == 0:
                self.model_device = tensor.device
                self.meta = tensor.device.type == "meta"
            self.names[name] = self.stand_in(tensor, (shapes or {}).get(name))

    def stand_in(self, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Makes (once) the stand-in of a tensor of the model or of the inputs."""
        found = self.stand_ins.get(id(tensor))
        if found is None:
            with torch.inference_mode(False):  # inference mode would hide the ops that composite ops are made of
                found = self._made(tensor, shape)
            self.stand_ins[id(tensor)] = found
            self.stand_ins[id(found)] = found
            self._originals += [tensor, found]
        return found

    def _made(self, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        if not self.real and (tensor.is_floating_point() or tensor.is_complex()):
            return _strided(tensor, shape)
        if isinstance(tensor, nn.Parameter):
            return tensor.detach()
        found = tensor.detach().clone() if tensor.device.type != "meta" else tensor.detach()
        if shape is not None and shape != tuple(found.shape):
            found = found[tuple(slice(n) for n in shape)].contiguous()
        return found

    def adopt(self, tensor: Tensor) -> Tensor:
        """Takes in a tensor that is neither the model's nor an input, such as one the run makes of a number: as it is."""
        found = tensor.detach()
        self.stand_ins[id(tensor)] = self.stand_ins[id(found)] = found
        self._originals += [tensor, found]
        return found

    def set_data(self, tensor: Tensor, data: Tensor) -> None:
        """Let `data` stand for what `tensor` holds from now on, as `tensor.data = data` says; a tensor of the model is kept."""
        if id(tensor) in self.stand_ins and self.stand_ins[id(tensor)] is not tensor:
            self.stand_ins[id(tensor)] = self.stand_ins[id(data)] = data
            self._originals.append(data)
        else:
            tensor.data = data

    def device(self, tensor: Tensor) -> torch.device:
        actual = tensor.device
        return self.model_device if actual.type == "meta" and not self.meta else actual

    def run(self, call: OpCall) -> Any:
        """Runs the op as it is called, with all tensors on the meta device where one is."""
        args, kwargs = call.args, call.kwargs
        if call.name == "set_data":
            return args[1].detach()
        if self.real and call.writes:
            self._keep_parameters(tensors_in([*args, *kwargs.values()]))
        on_meta = [t.is_meta for t in (*tensors_in(args), *tensors_in([*kwargs.values()]))]
        if not self.real and any(on_meta):
            if call.name in ("index", "index_put", "index_put_"):
                args = (args[0], [p for i in args[1] for p in _positions(i)], *args[2:])
            if not all(on_meta):
                move = _floats_to_meta if spec(call.name).lengths else _to_meta
                args = swap(args, move)
                kwargs = {k: swap(v, move) for k, v in kwargs.items()}
            if "device" in kwargs:
                kwargs["device"] = torch.device("meta")
            result = _on_shapes(call, args, kwargs)
        else:
            result = call.func(*args, **kwargs)
        if self.draw is not None and draws_one(call.name, result):
            self.drew = True
            result = as_drawn(call.name, args, result, self.draw)
        if call.name == "scalar_tensor" and result.device.type == "meta":
            result._number = float(args[0])  # made in C++, beside a tensor that has no values
        return result

    def _keep_parameters(self, written: list[Tensor]) -> None:
        """Copy the values of parameters whose memory an op may write, before it does so for the first time."""
        for tensor in written:
            parameter = self._parameters.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
            if parameter is not None and all(p is not parameter for p, _ in self._written):
                self._written.append((parameter, parameter.detach().clone()))

    def restore(self) -> None:
        """Give parameters that the run wrote their values back."""
        with torch.no_grad():
            for tensor, values in self._written:
                tensor.detach().copy_(values)
        self._written.clear()


def _on_shapes(call: OpCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an op gives on meta tensors; the stream need not see what whole functions and shape functions call."""
    shape = spec(call.name).shape
    if shape is not None and "out" not in kwargs:
        with without_dispatch():
            known = shape(*args, **kwargs)
        if known is not NotImplemented:
            return known
    if isinstance(call.func, OperatorBase):
        return call.func(*args, **kwargs)
    with without_dispatch():
        return call.func(*args, **kwargs)


def number_in(tensor: Tensor) -> float | None:
    """The one real number in a tensor, where it has one and its value is known."""
    if tensor.numel() != 1 or tensor.dtype is torch.bool or tensor.is_complex():
        return None
    return getattr(tensor, "_number", None) if tensor.device.type == "meta" else float(tensor)


class OnStandIns(Runner):
    """A handler that runs each op as it is called, on stand-ins."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def op(self, call: OpCall) -> Any:
        return self.execution.run(call)

    def owned(self, tensor: Tensor) -> Tensor:
        return self.execution.stand_ins.get(id(tensor), tensor)

    def device(self, tensor: Tensor) -> torch.device:
        return self.execution.device(tensor)

    def set_data(self, tensor: Tensor, data: Tensor | None) -> None:
        if data is not None:
            self.execution.set_data(tensor, data)


def _to_meta(t: Tensor) -> Tensor:
    return t if t.is_meta else _strided(t)


def _floats_to_meta(t: Tensor) -> Tensor:
    return _to_meta(t) if t.is_floating_point() or t.is_complex() else t


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask whose values are known as the positions it picks: a mask of the meta device picks nothing."""
    if index is None or index.dtype not in (torch.bool, torch.uint8) or index.device.type == "meta":
        return (index,)
    return index.nonzero().unbind(1)
