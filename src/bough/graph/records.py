"""The records of a traced run: ops, values, groups, layers, and what froze."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bough.spaces import Atom, Space, count, normal


class GroupKind(StrEnum):
    """What the units of a group are; of several that hold, the first one here counts."""

    EXPERT = "expert"
    HEAD_DIM = "head_dim"
    HEAD = "head"
    CHANNEL = "channel"
    HIDDEN = "hidden"  # of a residual stream or an embedding
    NEURON = "neuron"

    def __repr__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Member:
    """A place where a group occurs: dim `dim` of the parameter or buffer `name`."""

    name: str
    dim: int


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Units that can be removed together with all that belongs to them.

    `exact`: removing units equals zeroing them. Otherwise a statistic (a mean, a norm, a softmax) runs over the units,
    and removal equals a model that takes it over the kept units only. `multiple`: an op of the model runs only on widths
    that are multiples of this, `least`: and on no fewer units. `readers`: how many times products with the units are summed
    over them in a run, by all layers that read a residual stream, say; at least 1.
    """

    name: str
    kind: GroupKind
    size: int
    exact: bool
    members: tuple[Member, ...]
    atom: Atom
    multiple: int = 1
    least: int = 1
    readers: int = 1

    def to_dict(self) -> dict[str, Any]:
        members = [[m.name, m.dim] for m in self.members]
        return {"name": self.name, "kind": self.kind, "units": self.size, "exact": self.exact, "members": members}


@dataclass(frozen=True, eq=False, slots=True)
class Frozen:
    """Units of parameters that stay, and why."""

    name: str
    size: int
    reason: str
    members: tuple[Member, ...]
    atom: Atom

    def to_dict(self) -> dict[str, Any]:
        members = [[m.name, m.dim] for m in self.members]
        return {"name": self.name, "units": self.size, "reason": self.reason, "members": members}


@dataclass(frozen=True, eq=False, slots=True)
class State:
    """A tensor that the model holds, with the space of each of its axes."""

    name: str
    axes: tuple[Space, ...]
    itemsize: int
    parameter: bool
    saved: bool
    floating: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """Memory that an op fills: its axes, bytes an element, the ops that make it and last read it.

    `floats`: floating-point numbers an element (2 of complex ones); 0 of integers and booleans.
    """

    axes: tuple[Space, ...]
    itemsize: int
    born: int
    dies: int
    floats: int = 1


@dataclass(frozen=True, eq=False, slots=True)
class OpRecord:
    """One op of the run."""

    index: int
    name: str
    module: str
    where: str
    inputs: tuple[int, ...]  # for each tensor argument, the (op, output) number of its value; -1 for tensors of the model
    arguments: tuple[tuple[Space, ...], ...]  # the axes of each tensor argument
    states: tuple[str, ...]  # for each tensor argument, the name of the tensor of the model it is, or ""
    values: tuple[int, ...]  # the numbers of its results
    results: tuple[tuple[Space, ...], ...]
    macs: tuple[tuple[Space, ...], ...]
    renormalized: tuple[Space, ...]
    undefined: tuple[Space, ...]  # axes along which masked units make the op undefined (weight norm: 0 / 0)
    scalars: tuple[tuple[int | str, float], ...]  # numbers among the arguments, by position or keyword
    scale_of: Space | None
    detail: tuple[Any, ...]  # the arguments with tensors as None, for the pull-back of scales
    outcome: Any = None  # what a run on real values gave where control flow may depend on it (not floats)
    identified: tuple[Space, ...] = ()  # spaces of which the Python identifies a unit by its number
    counts: tuple[tuple[int, Space], ...] = ()  # (position of an integer argument, what it counts: no result shows it)
    ranges: tuple[Space | None, ...] = ()  # for each result of integers: the space that its values number
    combined: tuple[Space, ...] = ()  # axes whose units it adds up or compares with each other
    narrower: tuple[tuple[Space, Space], ...] = ()  # pairs of which the first must stay smaller than the second


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module: the numbers of the values that enter and leave; its ops are start .. end - 1.

    `form`: 0 if it returns a tensor, n for a tuple of n. `returns`: the numbers of all values in what it returns.
    """

    enters: int
    leaves: int
    form: int
    start: int
    end: int
    returns: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A module that can be left out: it passes a type through.

    `container`: the list that it is an entry of, or None where it stands alone. `exact`: it is residual, so leaving it out
    equals zeroing its branch; otherwise it equals an identity in its place. `module_calls`: its calls in the recorded
    runs; in the first run there is one.
    """

    name: str
    container: str | None
    exact: bool
    module_calls: tuple[ModuleCall, ...]

    @property
    def form(self) -> int:
        return self.module_calls[0].form

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "layer", "container": self.container, "exact": self.exact}


@dataclass(frozen=True, slots=True)
class Ragged:
    """Units of `group` that may be other ones for each unit of `over`, as many for each: every head its own head dims.

    `reason`: why they have to be the same for all; None where they may differ.

    Example:
        >>> import torch, bough
        >>> conv = torch.nn.Conv1d
        >>> net = torch.nn.Sequential(conv(3, 4, 1), conv(4, 12, 1, groups=2), torch.nn.ReLU(), conv(12, 2, 1))
        >>> graph = bough.trace(net, torch.randn(1, 3, 5))
        >>> [(r.group, graph.group(r.group).size, graph.group(r.over).size) for r in graph.ragged if r.reason is None]
        [('1', 6, 2)]
    """

    group: str
    over: str
    reason: str | None

    @property
    def scores(self) -> str:
        """The key of their scores: an array [units of `over`, units of `group`]."""
        return f"{self.group}/each"

    def to_dict(self) -> dict[str, Any]:
        return {"group": self.group, "over": self.over, "reason": self.reason}


@dataclass(frozen=True, eq=False, slots=True)
class UnknownOp:
    """An op without a rule: what it touches is frozen."""

    name: str
    module: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'the model'} ({self.where})"


@dataclass(frozen=True, slots=True)
class Beside:
    """A module that no call reached, run on the inputs of its sibling; `outputs`: the axes of what it returned, by path."""

    name: str
    sibling: str
    outputs: Mapping[str, tuple[Space, ...]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One recorded run of the model: its ops are number `start` to `end` - 1.

    `call`: the index in `Graph.calls` of the call that was made. `real`: on real values, because the control flow depends on
    data. `other_mode`: in training mode where the model was in evaluation mode, or the other way round. `doubled`: with each
    sample twice, because the model does not run on a batch of one in that mode. `beside`: modules that no call reached, which
    were run on the inputs of a sibling.
    """

    call: int
    start: int
    end: int
    real: bool
    other_mode: bool = False
    doubled: bool = False
    beside: tuple[Beside, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreached:
    """A module or tensor that no call reached: its name, and how a cut treats it."""

    name: str
    treatment: str

    def __str__(self) -> str:
        return f"{self.name}: {self.treatment}"


Named = str | tuple[str, int]
"""A module or tensor by name, a pattern of names, or (tensor, dim)."""


_SHOWN = 10  # unreached modules that messages list


def unreached_lines(unreached: Sequence[Unreached]) -> list[str]:
    """Return what is said about modules and tensors that no call reached: how each is treated, and what to do."""
    if not unreached:
        return []
    shown = [f"  {u}" for u in unreached[:_SHOWN]]
    more = [f"  and {len(unreached) - _SHOWN} more"] if len(unreached) > _SHOWN else []
    return [
        f"{len(unreached)} parts of the model are reached by no call. If you use them, give a call that reaches each: "
        "example_inputs=[bough.Call(...), bough.Call(...)]; otherwise delete them from the model",
        *shown,
        *more,
    ]


def sizes(axes: tuple[Space, ...], kept: Mapping[Atom, int]) -> tuple[int, ...]:
    """The sizes of axes when each atom keeps so many units."""
    return tuple(int(count(a, kept)) for a in axes)


def atoms_of(spaces: tuple[Space, ...]) -> set[Atom]:
    """All atoms that occur in some spaces."""
    return {a for s in spaces for a in normal(s).atoms}


def value_axes(ops: Iterable[OpRecord]) -> dict[int, tuple[Space, ...]]:
    """Return the axes of each value, by its number."""
    types: dict[int, tuple[Space, ...]] = {}
    for op in ops:
        types.update(zip(op.inputs, op.arguments, strict=True))
        types.update(zip(op.values, op.results, strict=True))
    types.pop(-1, None)
    return types
