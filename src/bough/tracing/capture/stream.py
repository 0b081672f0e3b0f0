"""A model's run as a stream of ops.

Two modes stand on top of each other. A `TorchFunctionMode` sees every call of torch's Python API: it reads and hands
out traced integers, keeps a few functions whole (`WHOLE`) that would dissolve into many ATen ops, and steps into
those written in Python. A `TorchDispatchMode` sees every ATen op. Each op, of either kind, is one `OpCall`, handed to a
`Handler`, which decides how it is run.

Order and number of the calls depend on the model and its inputs alone, not on how the handler runs them.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bough.ops import spec
from bough.torch_internals import EINSUM, FLATTEN_RECURRENT_WEIGHTS, PAD_PACKED_SEQUENCE, TorchDispatchMode
from bough.tracing.capture.location import here
from bough.tracing.capture.provenance import TracedInt

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
# Kept whole because ATen's own decomposition depends on strides, sizes or the device, or is long.
WHOLE: dict[Any, str] = {
    F.linear: "linear",
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    torch.batch_norm: "batch_norm",
    torch.layer_norm: "layer_norm",
    torch.group_norm: "group_norm",
    torch.rms_norm: "rms_norm",
    torch.instance_norm: "instance_norm",
    **dict.fromkeys((Tensor.reshape, torch.reshape), "reshape"),
    **dict.fromkeys((Tensor.flatten, torch.flatten), "reshape"),
    Tensor.contiguous: "contiguous",
    Tensor.tolist: "tolist",
    **dict.fromkeys((Tensor.numpy, Tensor.__array__, Tensor.__dlpack__), "numpy"),
    **dict.fromkeys((torch.tensor_split, Tensor.tensor_split), "tensor_split"),  # where to split may be in a tensor
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), "matmul"),
    **dict.fromkeys((torch.bmm, Tensor.bmm), "bmm"),
    **dict.fromkeys((torch.sparse.mm, torch.mm, Tensor.mm), "mm"),  # of sparse matrices made of other ops
    **dict.fromkeys((torch.take_along_dim, Tensor.take_along_dim), "take_along_dim"),
    F.one_hot: "one_hot",
    EINSUM: "einsum",
    PAD_PACKED_SEQUENCE: "_pad_packed_sequence",
    **{getattr(torch, name): name for name in _RECURRENT},  # an op for every step, or one of oneDNN or cuDNN
    # the same in an exported program
    **{
        getattr(torch.ops.aten, name).default: name
        for name in (
            "linear", "scaled_dot_product_attention", "batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm",
            "reshape", "contiguous", "matmul", "bmm", "einsum",
        )
    },
    torch.ops.aten.flatten.using_ints: "reshape",
}  # fmt: skip
_CHUNKS = {torch.chunk, Tensor.chunk}  # equations hold between their results, whatever the arguments
_STEP_INTO = {F.__name__, torch.functional.__name__}


@dataclass(slots=True)
class OpCall:
    """One op as it is called: `name` of the rule, the function, its arguments, and where it stands."""

    index: int
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: object
    file: str
    line: int
    pointwise: bool
    writes: bool  # to the memory of an argument
    caller: Any = None  # the function of torch's Python API that calls it

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


class Handler(Protocol):
    """What is done with the stream."""

    def op(self, call: OpCall) -> Any:
        """Runs the op and returns its result."""

    def owned(self, tensor: Tensor) -> Tensor:
        """The stand-in of a tensor that belongs to the model or the inputs; any other tensor as it is."""

    def shape(self, tensor: Tensor) -> torch.Size:
        """The shape that the model's Python is to see."""

    def device(self, tensor: Tensor) -> torch.device:
        """The device that the model's Python is to see."""

    def set_data(self, tensor: Tensor, data: Tensor | None) -> None:
        """Called after the op `set_data` (`tensor.data = ...`) with the tensor it was called on and what the op gave."""

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Called after a leaf function that was given traced integers, or gives equal parts."""


class Runner:
    """A handler that runs each op as it is called, on the tensors that it is called with."""

    def op(self, call: OpCall) -> Any:
        return call.func(*call.args, **call.kwargs)

    def owned(self, tensor: Tensor) -> Tensor:
        return tensor

    def shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def device(self, tensor: Tensor) -> torch.device:
        return tensor.device

    def set_data(self, tensor: Tensor, data: Tensor | None) -> None:
        pass

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pass


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


_SHAPE, _DEVICE, _DATA = _getter("shape"), _getter("device"), _getter("data")
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType)
_FLAGS = {_getter("is_meta"): "meta", _getter("is_cuda"): "cuda", _getter("is_cpu"): "cpu"}


class Stream:
    """`with Stream(handler): model(...)` hands each op of the run to the handler."""

    def __init__(self, handler: Handler, first: int = 0) -> None:
        self.handler = handler
        self.count = first
        self.quiet = False  # set while a handler works: what it calls itself is no part of the run
        self.caller: Any = None  # the function of torch's Python API that is at work
        self._modes: tuple[_DispatchMode, _FunctionMode] | None = None

    def __enter__(self) -> Stream:
        self._modes = _DispatchMode(self), _FunctionMode(self)
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._modes is not None
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]
        self._modes = None  # they know the stream: kept, they would hold all it knows until a collection of cycles

    def submit(self, name: str, func: Any, args: Any, kwargs: Any, pointwise: bool, writes: bool) -> Any:
        module, file, line = here()
        call = OpCall(self.count, name, func, args, kwargs, module, file, line, pointwise, writes, self.caller)
        self.count += 1
        return self.quietly(self.handler.op, call)

    def quietly(self, work: Callable[..., Any], *args: Any) -> Any:
        """Calls `work` unseen by the stream."""
        before, self.quiet = self.quiet, True
        try:
            return work(*args)
        finally:
            self.quiet = before


_FACTS: dict[Any, tuple[str, bool, bool]] = {}


def _facts(func: Any) -> tuple[str, bool, bool]:
    """(rule name, pointwise, writes to the memory of an argument) of an ATen overload."""
    facts = _FACTS.get(func)
    if facts is None:
        schema = getattr(func, "_schema", None)
        if schema is None:
            return _FACTS.setdefault(func, (str(func.name()), False, False))
        name = schema.name.removeprefix("aten::")
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        writes = writes and torch.Tag.inplace_view not in func.tags  # such as t_: another look at the same memory
        facts = _FACTS[func] = (name, torch.Tag.pointwise in func.tags or _works_in_place(name), writes)
    return facts


def _works_in_place(name: str) -> bool:
    """Whether `name` is the in-place form of an op that torch tags as pointwise."""
    functional = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and name[:-1] else None
    return functional is not None and any(torch.Tag.pointwise in getattr(functional, o).tags for o in functional.overloads())


class _DispatchMode(TorchDispatchMode):
    supports_higher_order_operators = True  # such as flex_attention: ops like any other, with functions among their arguments

    def __init__(self, stream: Stream) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream = stream

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do not wrap `__torch_dispatch__` against the compiler, for which torch would import it: nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.stream.quiet:
            return func(*args, **(kwargs or {}))
        name, pointwise, writes = _facts(func)
        owned = self.stream.handler.owned
        args = swap(args, owned)
        kwargs = {k: swap(v, owned) for k, v in kwargs.items()} if kwargs else {}
        return self.stream.submit(name, func, args, kwargs, pointwise, writes)


_PLAIN = frozenset((int, float, bool, type(None), str, torch.dtype, torch.device, torch.memory_format))  # hold no tensor


def swap(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` applied to each tensor in it (tuples and lists opened)."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return change(value)
    if kind is tuple or kind is list:
        return kind([swap(v, change) for v in value])
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an argument list, tuples and lists opened."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if type(value) in (tuple, list):
        for v in value:
            if type(v) not in _PLAIN:
                found += tensors_in(v)
    return found


def written(call: OpCall, results: list[Tensor]) -> list[Tensor]:
    """Return for each result the argument that it is written to, which a run on shapes may have moved; or the result itself."""
    schema = getattr(call.func, "_schema", None)
    if not call.writes or schema is None:
        return results
    arguments = schema.arguments
    given = {a.name: v for a, v in zip(arguments, call.args, strict=False)} | call.kwargs
    targets = [given.get(a.name) for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    found = [t for given in targets for t in tensors_in(given)]
    return found if len(found) == len(results) else results


def _positional(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with as many arguments by position as there can be: what rules read."""
    given = dict(kwargs)
    for parameter in spec(name).parameters[len(args) :]:
        if parameter not in given:
            break
        args = (*args, given.pop(parameter))
    return args, given


class _FunctionMode(TorchFunctionMode):
    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stream, handler = self.stream, self.stream.handler
        if stream.quiet:
            return func(*args, **kwargs)
        if func == _SHAPE:
            return stream.quietly(self._shape, args[0])
        if func is Tensor.size:
            shape = stream.quietly(self._shape, args[0])
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if func == _DEVICE:
            return handler.device(args[0])
        if func in _FLAGS:
            return handler.device(args[0]).type == _FLAGS[func]
        if func == _DATA:
            return args[0].detach()
        if func == _SET_DATA:
            given = stream.quietly(swap, args, handler.owned)
            stream.quietly(handler.set_data, args[0], stream.submit("set_data", func, given, {}, False, True))
            return None
        if func == FLATTEN_RECURRENT_WEIGHTS:  # moves weights in memory, for which the run itself has no use
            return None
        if func in WHOLE:
            args, kwargs = _positional(WHOLE[func], args, kwargs)
            args = stream.quietly(swap, args, handler.owned)
            if WHOLE[func] == "reshape":
                args = (args[0], *stream.quietly(swap, args[1:], int))  # a size may be a tensor of no dims
            kwargs = {k: stream.quietly(swap, v, handler.owned) for k, v in kwargs.items()}
            return stream.submit(WHOLE[func], func, args, kwargs, False, False)
        body = _python_body(func)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        if type(func) in _BUILTIN:  # what is written in C++ may read the sizes of the tensors it is given
            args = stream.quietly(swap, args, handler.owned)
        before, stream.caller = stream.caller, func
        try:
            result = func(*args, **kwargs)
        finally:
            stream.caller = before
        if func in _CHUNKS or _has_traced(args) or (kwargs and _has_traced(tuple(kwargs.values()))):
            stream.quietly(handler.integers, func, args, kwargs, result)
        return result

    def _shape(self, tensor: Tensor) -> torch.Size:
        return self.stream.handler.shape(self.stream.handler.owned(tensor))


def _has_traced(value: Any) -> bool:
    kind = type(value)
    if kind is TracedInt:
        return True
    if kind is slice:
        return _has_traced((value.start, value.stop, value.step))
    if kind in _PLAIN or not isinstance(value, (tuple, list)):
        return False
    return any(_has_traced(v) for v in value if type(v) not in _PLAIN)


_bodies: dict[Any, Any] = {}
_namespaces: dict[str, dict[str, Any]] = {}
_DEAF = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False)


def _python_body(func: Any) -> Any:
    """A function of torch.nn.functional as one that does not look for overrides, so that its calls are seen."""
    if type(func) is not types.FunctionType or func.__module__ not in _STEP_INTO:
        return None
    body = _bodies.get(func)
    if body is None:
        module = func.__globals__["__name__"]  # where its code stands; a dispatcher's `__module__` says otherwise
        namespace = _namespaces.get(module)
        if namespace is None:  # a module's private functions ask for overrides in the name of the public ones
            namespace = _namespaces[module] = {**func.__globals__, **_DEAF}
            for name, value in func.__globals__.items():
                if type(value) is types.FunctionType and name.startswith("_") and value.__module__ == module:
                    namespace[name] = _rebound(value, namespace)
        body = _bodies[func] = _rebound(func, namespace)
    return body


def _rebound(func: types.FunctionType, namespace: dict[str, Any]) -> types.FunctionType:
    closure = func.__closure__ and tuple(
        types.CellType(_python_body(c.cell_contents) or c.cell_contents) for c in func.__closure__
    )
    body = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, closure)
    body.__kwdefaults__ = func.__kwdefaults__
    return body
