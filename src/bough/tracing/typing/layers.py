"""Layers that can be left out: modules that return what they are given, with something added or changed, in the same type.

An entry of a `ModuleList` or `Sequential` that passes a type through is taken out of its list, and the rest closes up.
A residual block that stands elsewhere is replaced by a `PassThrough`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bough.graph import Layer, ModuleCall, OpRecord
from bough.ops import spec
from bough.spaces import normal
from bough.tracing.capture.stream import tensors_in
from bough.tracing.capture.tree import tensors_within
from bough.tracing.typing.recorder import Recorder

_ENTRIES = (nn.ModuleList, nn.Sequential)


class PassThrough(nn.Module):
    """Stands where a layer was: returns its first tensor, in the form in which the layer returned it."""

    def __init__(self, form: int) -> None:
        super().__init__()
        self.form = form  # 0: a tensor alone; n: a tuple of n, the others None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = tensors_in([*args, *kwargs.values()])[0]
        return first if not self.form else (first, *(None,) * (self.form - 1))


@contextmanager
def bypassed(layer: nn.Module) -> Iterator[None]:
    """Within the context, a layer returns its first tensor, as `bypass` has it."""
    handle = bypass(layer)
    try:
        yield
    finally:
        handle.remove()


def bypass(layer: nn.Module) -> RemovableHandle:
    """Makes a layer return its first tensor, whatever it computes; what it notes elsewhere (a cache) it goes on to note."""

    def unchanged(module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        first = tensors_in([*args, *kwargs.values()])[0]
        return (first, *result[1:]) if type(result) is tuple else first

    return layer.register_forward_hook(unchanged, with_kwargs=True)


class Watch:
    """Notes, during each recorded run, what enters and leaves each module."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.model, self.recorder = model, recorder
        self.runs: list[dict[str, list[ModuleCall]]] = []

    def begin(self) -> None:
        """A run begins."""
        self.runs.append({})

    def forget(self) -> None:
        """The last run does not count."""
        self.runs.pop()

    def __call__(self) -> None:
        """Wraps the forward of every inner module; to be undone with the rest of the instance dictionaries."""
        for name, module in self.model.named_modules():
            if name and any(True for _ in module.parameters()):
                module.__dict__["forward"] = self._noting(name, module.forward)

    def _noting(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        def noting(*args: Any, **kwargs: Any) -> Any:
            given = tensors_in([*args, *kwargs.values()])
            enters = recorder.value(recorder.owned(given[0])).number if given else -1
            start = len(recorder.ops)
            result = forward(*args, **kwargs)
            form = len(result) if type(result) is tuple else 0
            first = result[0] if form else result
            leaves = recorder.value(recorder.owned(first)).number if isinstance(first, Tensor) else -1
            numbers = (recorder.number(tensor) for tensor in tensors_within(result))
            returns = tuple(dict.fromkeys(n for n in numbers if n is not None))
            self.runs[-1].setdefault(name, []).append(ModuleCall(enters, leaves, form, start, len(recorder.ops), returns))
            return result

        return noting

    def layers(self, outputs: Iterable[int]) -> tuple[Layer, ...]:
        """Return the modules of the first run that can be left out; `outputs` are the numbers of the values that runs give."""
        ops = self.recorder.ops
        types = {n: axes for op in ops for n, axes in zip(op.values, op.results, strict=True)}
        readers: dict[int, list[int]] = {}
        for op in ops:
            for n in op.inputs:
                readers.setdefault(n, []).append(op.index)
        for n in outputs:
            readers.setdefault(n, []).append(len(ops))

        def passes(p: ModuleCall, module_calls: Sequence[ModuleCall]) -> bool:
            """Whether a type passes through, what is made inside is read by the layer alone (caches in its next call), and
            there is something to save."""
            inside = ops[p.start : p.end]
            same = p.enters in types and [normal(a) for a in types[p.enters]] == [normal(a) for a in types.get(p.leaves, ())]
            if min(p.enters, p.leaves) < 0 or p.enters == p.leaves or not same or not any(op.macs for op in inside):
                return False
            reading = (i for op in inside for n in op.values if n != p.leaves for i in readers.get(n, ()))
            return all(i < p.end or any(q.start <= i < q.end for q in module_calls) for i in reading)

        modules = dict(self.model.named_modules())
        found = []
        for name in self.runs[0]:
            module_calls = tuple(p for run in self.runs for p in run.get(name, ()))  # another run may skip it
            if len(self.runs[0][name]) != 1 or not all(passes(p, module_calls) for p in module_calls):
                continue
            holder, _, key = name.rpartition(".")
            entry = isinstance(modules[holder], _ENTRIES) if holder or key in modules else False
            residual = all(_residual(ops[p.start : p.end], p) for p in module_calls)
            if entry or residual:
                found.append(Layer(name, holder if entry else None, residual, module_calls))
        return tuple(_outermost_otherwise(found))


def _residual(ops: Sequence[OpRecord], p: ModuleCall) -> bool:
    """Whether what enters reaches what leaves by additions alone."""
    makers = {n: op for op in ops for n in op.values}
    waiting, seen = [p.leaves], set()
    while waiting:
        n = waiting.pop()
        if n == p.enters:
            return True
        op = makers.get(n)
        if op is None or n in seen:
            continue
        seen.add(n)
        if op.name.rstrip("_") == "add":
            waiting.extend(op.inputs)
        elif spec(op.name).passes_layers:
            waiting.append(op.inputs[0])
    return False


def _outermost_otherwise(found: list[Layer]) -> list[Layer]:
    """Of nested blocks that stand outside lists, with the same way in and out, the outermost."""

    def way(layer: Layer) -> tuple[int, int]:
        return layer.module_calls[0].enters, layer.module_calls[0].leaves

    ways = {way(layer) for layer in found if layer.container is not None}
    result = []
    for layer in sorted(found, key=lambda x: (x.module_calls[0].start, -x.module_calls[0].end, x.name)):
        if layer.container is not None or way(layer) not in ways:
            ways.add(way(layer))
            result.append(layer)
    return result


def leave_out(model: nn.Module, layers: Iterable[tuple[str, int, bool]]) -> None:
    """Takes layers (name, form, closes) out of `model`, in place: lists close up, or a `PassThrough` takes the place."""
    gone: dict[str, set[str]] = {}
    for name, form, closes in layers:
        holder, _, key = name.rpartition(".")
        if closes:
            gone.setdefault(holder, set()).add(key)
        else:
            model.get_submodule(holder)._modules[key] = PassThrough(form)
    for holder, keys in sorted(gone.items(), key=lambda item: -item[0].count(".")):  # inner lists first: names stay good
        parent = model.get_submodule(holder)
        kept = [(k, m) for k, m in parent._modules.items() if k not in keys]
        numbered = all(k.isdigit() for k in parent._modules)
        parent._modules.clear()
        for i, (key, module) in enumerate(kept):
            parent._modules[str(i) if numbered else key] = module
