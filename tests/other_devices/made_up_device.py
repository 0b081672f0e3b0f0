"""A second device, `far`, where there is only one: it computes on the CPU, and refuses tensors that are not on it, as GPUs do.

A process that imports this has the device for good. Tensors on it have no memory of their own: NEAR has their values, by their
storage. Views have strides only there, so an op that reads strides is given a copy of a view that is not contiguous.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
NEAR: dict[int, Tensor] = {}
_OPS = torch.ops.aten
_SHARED = {_OPS.index.Tensor, _OPS.index_put_.default, _OPS._index_put_impl_.default}  # indices may be on the CPU
_STRIDED = {_OPS.as_strided.default, _OPS._reshape_alias.default}
_COPIED = {_OPS.view.default: _OPS.reshape.default, _OPS._unsafe_view.default: _OPS.reshape.default}


def to_device(value: Tensor) -> Tensor:
    made = torch._C._acc.create_empty_tensor(list(value.shape), value.dtype)
    NEAR[made.untyped_storage()._cdata] = value
    return made


def is_on_device(tensor: Tensor) -> bool:
    return tensor.device.type == NAME


def near(tensor: Tensor) -> Tensor:
    return NEAR[tensor.untyped_storage()._cdata] if is_on_device(tensor) else tensor


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if op is _OPS._copy_from.default:
        near(args[1]).copy_(near(args[0]))
        return args[1]
    if op is _OPS._local_scalar_dense.default:
        return near(args[0]).item()
    stray = [t for t in tensors if not is_on_device(t) and t.dim() > 0]
    if stray and op not in _SHARED:
        raise RuntimeError(f"{op} expects all tensors on the same device: one is on {stray[0].device}, others are on far")
    args, kwargs = tree_map_only(Tensor, near, (args, kwargs))
    kwargs = {k: torch.device("cpu") if isinstance(v, torch.device) else v for k, v in kwargs.items()}
    if op in _STRIDED:
        base = args[0].contiguous()
        places = [base.storage_offset() + (args[3] if len(args) > 3 else 0)] if op is _OPS.as_strided.default else []
        args = (base, *args[1:3], *places)
    found = _COPIED.get(op, op)(*args, **kwargs)
    same = {id(near(t)): t for t in tensors}
    for tensor in tensors:
        if is_on_device(tensor) and tensor.shape != near(tensor).shape:  # an out= that was resized
            tensor.data = to_device(near(tensor))
    given = {near(t).untyped_storage()._cdata for t in tensors}

    def result(t: Tensor) -> Tensor:
        return same[id(t)] if id(t) in same else to_device(t if t.untyped_storage()._cdata in given else t.contiguous())

    return tree_map_only(Tensor, result, found)


def _convolution_backward(*args: Any) -> Any:
    return run(_OPS.convolution_backward.default, *args[:3], None, *args[3:])


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if not is_on_device(self):
        return _own_deepcopy(self, memo)
    return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))


_setup_privateuseone_for_python_backend(NAME)
_every, _aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_every.fallback(run, "PrivateUse1")
_aten.impl("convolution_overrideable", lambda *args: run(_OPS.convolution.default, *args), "PrivateUse1")
_aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
_own_deepcopy = Tensor.__deepcopy__
Tensor.__deepcopy__ = _deepcopy
# parameters stay the same objects when they move, as on GPUs, and what refers to them weakly goes on to do so
torch.__future__.set_swap_module_params_on_conversion(True)
torch.utils.weakref = SimpleNamespace(getweakrefs=lambda tensor: ())
