"""The private parts of torch that bough leans on, each with the public alternative and why it does not serve.

`tests/test_torch_internals.py` has a test for each, which says in words what a release of torch has changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator, OperatorBase, OpOverload
from torch.fx._pytree import tree_flatten_spec
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    is_traceable_wrapper_subclass,
)

__all__ = [
    "CALL_OF_A_MODULE", "COMPILED_MODULE", "EINSUM", "FAKE_TENSORS", "FLATTEN_RECURRENT_WEIGHTS", "PAD_PACKED_SEQUENCE",
    "HigherOrderOperator", "OpOverload", "OperatorBase", "TorchDispatchMode", "fail_on_recompile_limit",
    "is_traceable_wrapper_subclass", "learned_fake_quantize", "modes_of_thread", "tree_flatten_spec", "without_dispatch",
]  # fmt: skip

# `TorchDispatchMode` (sees every ATen op) stands in a private module, and torch's own guide to extending it imports it there.
# Public tracers serve less: `torch.fx` stops at control flow and at sizes, `torch.export` unrolls the model's Python, and
# neither lets the model run on with integers that remember where they come from.

# `is_traceable_wrapper_subclass` finds tensors with an inner layout (quantized, sharded). There is no public test;
# a list of classes would miss those of other packages.

# `OpOverload`, `OperatorBase`, `HigherOrderOperator`: the classes of `torch.ops.aten.add.Tensor` and the like, needed for
# `isinstance`. `type(torch.ops.aten.add.Tensor)` gives the first one only.

# `tree_flatten_spec` puts inputs into the order of an exported program's placeholders. Its public twin in
# `torch.utils._pytree` is private as well and does not take specs with other containers of the same entries.

CALL_OF_A_MODULE = nn.Module._call_impl.__code__
"""The code of a module's call, in whose frame `self` is the module. Hooks tell the module that runs, too, but change modules,
and do not tell what runs between two of them."""

EINSUM = torch._VF.einsum  # type: ignore[attr-defined]
"""The function in C++ behind `torch.einsum`, which is Python and takes several forms of arguments."""

PAD_PACKED_SEQUENCE = torch._pad_packed_sequence
"""The function in C++ behind `pad_packed_sequence`, whose Python reads lengths that a run on shapes does not have."""

FLATTEN_RECURRENT_WEIGHTS = torch._cudnn_rnn_flatten_weight
"""What recurrent layers on CUDA call to move their weights into one block; nothing public switches it off for one run."""

FAKE_TENSORS = "torch._subclasses.fake_tensor"
"""The module of the fake tensors of `torch.export`, whose attributes are not the model's. Importing the class is slow."""

COMPILED_MODULE = ("torch._dynamo.eval_frame", "OptimizedModule"), "_orig_mod"
"""Module, class and attribute of what `torch.compile(model)` returns, in words because importing it is slow."""


def without_dispatch() -> Any:
    """Return a context in which ops bypass dispatch modes. A mode that is popped for each op would be ten times as slow."""
    return torch._C._DisableTorchDispatch()


def modes_of_thread() -> list[Any]:
    """Return the function and dispatch modes of this thread. Nothing public gives them, and a new thread starts without."""
    return [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]


def learned_fake_quantize(*args: Any) -> torch.Tensor:
    """Quantize and dequantize, with gradients for the scale; the public op passes gradients to the values alone."""
    quantized: torch.Tensor = torch._fake_quantize_learnable_per_tensor_affine(*args)
    return quantized


def fail_on_recompile_limit() -> Any:
    """Return a context in which `torch.compile` fails where it would fall back to eager mode; no argument asks for it."""
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
