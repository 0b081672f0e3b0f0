"""Parameters that no recorded run reads: what they would have to follow, and what is said about them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from bough.graph import ModuleCall, Unreached, value_axes
from bough.spaces import Space, freeze, unify
from bough.tracing.capture.siblings import NUMBER, difference, siblings_by_name, siblings_of, unreached_modules
from bough.tracing.capture.tree import tensors_within
from bough.tracing.typing.recorder import Recorder


def tie_beside(recorder: Recorder, name: str, sibling: str, given: Any, result: Any, output: Any) -> None:
    """Give what an unreached module returned the type of what its sibling returned of the same inputs.

    Where both return what they were given in the same shape, they may also be called one after the other: then the input
    has that type too.
    """
    inputs, results, outputs = (list(tensors_within(v)) for v in (given, result, output))
    for mine, its in zip(outputs, results, strict=False):
        _tie(_axes(recorder, mine), _axes(recorder, its), f"output of {name}, which no call reached, and of {sibling}")
    for tensor in outputs[len(results) :]:
        for axis in _axes(recorder, tensor):
            freeze(axis, f"output of {name}, which no call reached")
    if inputs and results:
        before, after = _axes(recorder, inputs[0]), _axes(recorder, results[0])
        if [a.size for a in before] == [a.size for a in after]:
            _tie(before, after, f"input and output of {sibling}, after which {name} may be called, which no call reached")


def tie_siblings(recorder: Recorder, runs: Iterable[Mapping[str, Sequence[ModuleCall]]], names: Sequence[str]) -> None:
    """Give all siblings the types of the first: an unreached module beside them may stand in the place of any."""
    types = value_axes(recorder.ops)
    met = {n: [p for run in runs for p in run.get(n, ())] for n in names}
    for one, other in pairwise(p for n in names for p in met[n]):
        for a, b in ((one.enters, other.enters), (one.leaves, other.leaves)):
            for axis, counterpart in zip(types.get(a, ()), types.get(b, ()), strict=False):
                if axis.size == counterpart.size:
                    unify(axis, counterpart, f"input or output of {names[0]} and of its siblings, of which a call reaches some")


def alike(model: nn.Module, name: str, sibling: str, result: Any, output: Any) -> bool:
    """Return whether an output shows that a module may stand in its sibling's place: the same shapes, or the same classes."""
    if difference(model.get_submodule(name), model.get_submodule(sibling)) < 2:
        return True
    shapes = [[tuple(t.shape) for t in tensors_within(v)] for v in (result, output)]
    return shapes[0] == shapes[1]


def siblings(model: nn.Module, recorder: Recorder, executed: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the modules that no call reached, and their called siblings that are the most alike."""
    read = {name for op in recorder.ops for name in op.states if name}
    found: dict[str, tuple[str, ...]] = {}
    for outer in unreached_modules(model, read, executed):
        found.update(siblings_of(model, outer, executed))
    return found


def _axes(recorder: Recorder, tensor: Tensor) -> tuple[Space, ...]:
    return recorder.typing(recorder.owned(tensor)).axes


def _tie(axes: Sequence[Space], others: Sequence[Space], reason: str) -> None:
    """Make axes the same; freeze those of other sizes, which what reads them can take only as they are."""
    for a, b in zip(axes, others, strict=False):
        if a.size == b.size:
            unify(a, b, reason)
        else:
            freeze(a, reason)
            freeze(b, reason)
    for axis in (*axes[len(others) :], *others[len(axes) :]):
        freeze(axis, reason)


def tie_tensors(model: nn.Module, recorder: Recorder, unread: Collection[str]) -> list[Unreached]:
    """Give unread tensors the types of siblings that a run reads, and return how each is treated.

    These are the tensors of modules whose siblings are not called either, but whose parameters are read, and entries of a
    `ParameterList` or `ParameterDict` and tensors of one module whose names differ by a number.
    """
    read = {name for op in recorder.ops for name in op.states if name}
    found: list[Unreached] = []
    for name in unread:
        holder, _, key = name.rpartition(".")
        for others in _places_like(model, holder, key):
            peers = [recorder.states[o] for o in others if o in read]
            if peers:
                for state in (recorder.states[name], *peers[1:]):
                    _tie(state.axes, peers[0].axes, f"{name}, which no call reaches, may stand in the place of {peers[0].name}")
                found.append(Unreached(name, f"cut as {peers[0].name} is"))
                break
    return found


def _places_like(model: nn.Module, holder: str, key: str) -> Iterator[list[str]]:
    """Yield names of tensors that may stand in the place of one: in the same module, then in siblings of the modules around."""
    owner, number = model.get_submodule(holder), NUMBER.sub("#", key)
    listed = isinstance(owner, (nn.ParameterList, nn.ParameterDict))
    dot = f"{holder}." if holder else ""
    yield [dot + k for k in owner._parameters if k != key and (listed or NUMBER.sub("#", k) == number != key)]
    path = key
    while holder:
        yield [f"{sibling}.{path}" for sibling in siblings_by_name(model, holder)]
        holder, _, last = holder.rpartition(".")
        path = f"{last}.{path}"
