"""Parameters and buffers that the user ties by hand (`trace(tie=...)`), such as those of an EMA teacher and its student.

Tied tensors have the same axis types, so that a cut removes the same units of both. Where no call reaches one of two tied
modules, it is run on the inputs of the other, and all of it is typed so: operators, integer attributes, attention scales.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bough.errors import PlanError, instead
from bough.graph import Named, Unreached
from bough.spaces import unify
from bough.tracing.capture.execution import model_tensors

if TYPE_CHECKING:
    from bough.tracing.typing.recorder import Recorder

Place = Named | nn.Module
Ties = Mapping[Any, Place]  # a key is a Place: the keys of a Mapping are invariant
"""{one place: the other}: names or patterns of modules and tensors, modules of the model, or (tensor, dim)."""
_EXAMPLE = "tie={'teacher.*': 'student.*'} or tie={('q_a.weight', 0): ('q_b.weight', 0)}"


@dataclass(frozen=True, slots=True)
class TiedPair:
    """Two tensors of a model by name, and the dims of the one and of the other that are tied; all of them where `whole`."""

    first: str
    second: str
    dims: tuple[tuple[int, int], ...]
    whole: bool


def tie_names(model: nn.Module, tie: Ties) -> dict[Named, Named]:
    """Return the ties with modules replaced by their names, which a copy of `model` understands as well.

    Raises:
        PlanError: an entry is no name, no pattern, no module of `model` and no (tensor, dim).
    """
    modules: dict[int, str] = {id(m): name for name, m in model.named_modules() if name}

    def named(place: Any) -> Named:
        if isinstance(place, str) and place:
            return str(place)
        if isinstance(place, nn.Module):
            if id(place) in modules:
                return modules[id(place)]
            kind = type(model).__name__
            raise PlanError(
                f"tie: a {type(place).__name__} is no part inside {kind}: take it from the model given, or write its name"
            )
        if isinstance(place, tuple) and [type(part) for part in place] == [str, int]:
            return str(place[0]), int(place[1])
        raise PlanError(f"tie: {place!r} is no name, pattern, module or (tensor, dim); give a dict such as {_EXAMPLE}")

    return {named(a): named(b) for a, b in tie.items()}


def tied_pairs(model: nn.Module, tie: Ties) -> tuple[list[TiedPair], list[str]]:
    """Return the pairs of tensors that `tie` names, and a note on each tensor named that has no counterpart.

    Raises:
        PlanError: an entry names nothing or has no counterpart, or two tied tensors have different shapes.
    """
    tensors = _tensors(model) if tie else {}
    pairs, notes = list[TiedPair](), list[str]()
    for one, other in tie_names(model, tie).items():
        label = f"tie={{{one!r}: {other!r}}}"
        if isinstance(one, tuple) and isinstance(other, tuple):
            pairs.append(_pair_of_dims(tensors, one, other, label))
        elif isinstance(one, str) and isinstance(other, str):
            lone = _pairs_by_name(tensors, one, other, label, pairs)
            notes += [f"{label}: {name} has no counterpart, and is not tied" for name in lone]
        else:
            raise PlanError(f"{label}: one side is a (tensor, dim) and the other is not; give both as {_EXAMPLE}")
    return pairs, notes


def _tensors(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Return {each name of a tensor that the model holds: (the name by which it is recorded, the tensor)}."""
    by_id = {id(tensor): (name, tensor) for name, tensor, _, _ in model_tensors(model)}
    named = {name: (name, tensor) for name, tensor in by_id.values()}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                named[f"{prefix}.{key}" if prefix else key] = by_id[id(tensor)]
    return named


def _pair_of_dims(
    tensors: Mapping[str, tuple[str, Tensor]], one: tuple[str, int], other: tuple[str, int], label: str,
) -> TiedPair:  # fmt: skip
    found = []
    for name, dim in (one, other):
        if name not in tensors:
            raise PlanError(f"{label} names no parameter or buffer: {name!r}; {instead(name, tensors)}")
        recorded, tensor = tensors[name]
        if not -tensor.dim() <= dim < tensor.dim():
            raise PlanError(f"{label}: {name} has {tensor.dim()} dims, so it has no dim {dim}")
        found.append((recorded, dim % tensor.dim(), tensor.shape[dim]))
    (first, a, size), (second, b, other_size) = found
    if size != other_size:
        raise PlanError(
            f"{label}: {one[0]} has {size} units in dim {one[1]}, and {other[0]} has {other_size} in dim {other[1]}; tied dims "
            "must have the same size"
        )
    return TiedPair(first, second, ((a, b),), whole=False)


def _pairs_by_name(
    tensors: Mapping[str, tuple[str, Tensor]], pattern: str, counterpart: str, label: str, pairs: list[TiedPair]
) -> list[str]:  # fmt: skip
    """Add the pairs of tensors whose names differ only in what the patterns say; return the names without a counterpart."""
    stars = pattern.count("*"), counterpart.count("*")
    if stars[0] != stars[1]:
        raise PlanError(f"{label}: each * stands for the same text on both sides, so both need the same number of them")
    if pattern == counterpart:
        raise PlanError(f"{label} names the same tensors twice; give two places, such as {_EXAMPLE}")
    match = re.compile("(.*)".join(map(re.escape, pattern.split("*"))) + r"(\..+)?")
    matched = [(name, found.groups("")) for name in tensors if (found := match.fullmatch(name))]
    if not matched:
        raise PlanError(f"{label}: {pattern!r} names no module, parameter or buffer; {instead(pattern, _paths(tensors))}")
    parts = counterpart.split("*")
    lone, found_any = [], False
    for name, texts in matched:
        other = "".join(part + text for part, text in zip(parts, texts, strict=True))
        if other not in tensors:
            lone.append(name)
            continue
        found_any = True
        (first, tensor), (second, its) = tensors[name], tensors[other]
        if tensor.shape != its.shape:
            raise PlanError(
                f"{label}: {name} has the shape {list(tensor.shape)}, and {other} {list(its.shape)}; tied tensors must have "
                "the same shape, so tie the dims that belong together: tie={('a.weight', 0): ('b.weight', 0)}"
            )
        if first != second:
            pairs.append(TiedPair(first, second, tuple((i, i) for i in range(tensor.dim())), whole=True))
    if not found_any:
        near = instead(counterpart, _paths(tensors))
        raise PlanError(f"{label}: nothing that {counterpart!r} names corresponds to {lone[0]}; {near}")
    return lone


def _paths(names: Iterable[str]) -> list[str]:
    """Return the names of tensors, and of the modules that hold them."""
    return list(dict.fromkeys(path for name in names for path in (*_around(name), name)))


def _around(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:i]) for i in range(1, len(parts)))


def unify_tied(recorder: Recorder, pairs: Sequence[TiedPair]) -> None:
    """Give tied dims the same types; to be called before anything is recorded."""
    for pair in pairs:
        first, second = recorder.states[pair.first].axes, recorder.states[pair.second].axes
        for a, b in pair.dims:
            unify(first[a], second[b])
            recorder.tied |= {id(first[a]), id(second[b])}


def modules_beside(
    model: nn.Module, pairs: Sequence[TiedPair], read: Collection[str], executed: Collection[str]
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """Return {module that no call reached: (the module that was called, to which all its parameters are tied,)}.

    Args:
        model: the model.
        pairs: what is tied.
        read: names of the model's tensors that a run reads.
        called: names of the modules that a run called.
    """
    used = {path for name in read for path in _around(name)} | {path for name in executed for path in (*_around(name), name)}
    tied = {(p.first, p.second) for p in pairs if p.whole}
    tied |= {(b, a) for a, b in tied}
    found: dict[str, tuple[str, ...]] = {}
    waiting = [pair for pair in dict.fromkeys(_holders(a, b) for a, b in sorted(tied)) if all(pair)]
    while waiting:
        module, partner = waiting.pop()
        inner, its = model.get_submodule(module), model.get_submodule(partner)
        names = [name for name, _ in inner.named_parameters()]
        if (
            module not in used
            and partner in executed
            and names
            and all((f"{module}.{n}", f"{partner}.{n}") in tied for n in names)
        ):
            found[module] = (partner,)
        elif names:
            parts = [key for key, part in inner._modules.items() if part is not None and its._modules.get(key) is not None]
            waiting += [(f"{module}.{key}", f"{partner}.{key}") for key in parts]
    return found


def _holders(first: str, second: str) -> tuple[str, str]:
    """Return the outermost modules around two tensors within which both have the same name; empty if there are none."""
    a, b = first.split("."), second.split(".")
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return (".".join(a), ".".join(b)) if len(first.split(".")) > len(a) else ("", "")


def following(pairs: Sequence[TiedPair], unread: Collection[str]) -> list[Unreached]:
    """Return the unread tensors of which all dims are tied, directly or through others, to tensors that a run reads."""
    partners: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.whole:
            partners.setdefault(pair.first, []).append(pair.second)
            partners.setdefault(pair.second, []).append(pair.first)
    follows = {name: name for name in partners if name not in unread}
    waiting = list(follows)
    while waiting:
        name = waiting.pop()
        for other in partners[name]:
            if other not in follows:
                follows[other] = follows[name]
                waiting.append(other)
    return [Unreached(name, f"cut as {follows[name]} is, to which it is tied") for name in unread if name in follows]
