"""The values that the stages hand on: a recorded run, and the groups of units that its types allow to cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from bough.calls import Call
from bough.spaces import Atom, Space, count, normal

if TYPE_CHECKING:
    from bough.cost import Cost


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
    kind: str
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
    inputs: tuple[int, ...]  # for each tensor argument, the (op, output) number of its value; -1 for held tensors
    arguments: tuple[tuple[Space, ...], ...]  # the axes of each tensor argument
    states: tuple[str, ...]  # for each tensor argument, the name of the held tensor it is, or ""
    values: tuple[int, ...]  # the numbers of its results
    results: tuple[tuple[Space, ...], ...]
    macs: tuple[tuple[Space, ...], ...]
    renormalized: tuple[Space, ...]
    undefined: tuple[Space, ...]  # axes along which masked units make the op undefined (weight norm: 0 / 0)
    scalars: tuple[tuple[int | str, float], ...]  # numbers among the arguments, by position or keyword
    scale_of: Space | None
    detail: tuple[Any, ...]  # the arguments with tensors as None, for the pull-back of scales
    outcome: Any = None  # what a run on real values gave where control flow may depend on it (not floats)
    told: tuple[Space, ...] = ()  # spaces of which the Python tells a unit by its number
    counts: tuple[tuple[int, Space], ...] = ()  # (position of an integer argument, what it counts: no result tells)
    ranges: tuple[Space | None, ...] = ()  # for each result of integers: the space that its values number
    combined: tuple[Space, ...] = ()  # axes whose units it adds up or compares with each other
    narrower: tuple[tuple[Space, Space], ...] = ()  # pairs of which the first must stay smaller than the second


@dataclass(frozen=True, slots=True)
class Passage:
    """One call of a module: the numbers of the values that enter and leave; its ops are start .. end - 1."""

    enters: int
    leaves: int
    form: int  # 0: returns a tensor; n: a tuple of n
    start: int
    end: int


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A module that can be left out: it passes a type through.

    `container`: the list that it is an entry of, or None where it stands alone. `exact`: it is residual, so leaving it out
    equals zeroing its branch; otherwise it equals an identity in its place. `passages`: its calls in the recorded runs; in the
    first run there is one.
    """

    name: str
    container: str | None
    exact: bool
    passages: tuple[Passage, ...]

    @property
    def form(self) -> int:
        return self.passages[0].form

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


class WeightSource(Protocol):
    """Where the values of a model's tensors are read from, if the model itself has none."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return the values of a parameter or buffer."""
        ...

    def reduce(self, name: str, dim: int, reduction: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        """Return `reduction(self.tensor(name), dim)`: [size of dim]."""
        ...


Named = str | tuple[str, int]
"""A module or tensor by name, a pattern of names, or (tensor, dim)."""


@dataclass(eq=False, repr=False)
class Graph:
    """A model's recorded runs with a type for every axis: what can be cut, what can not and why, what it costs.

    `calls`: what was called. `ops`: the operators of the first run, which is what a cost counts and what data is passed
    through. `further_ops`: those of the runs after it, numbered on from `ops`: of the other calls, and of runs in the other
    mode (training or evaluation), made where that reads parameters which the mode the model is in does not. They bind the
    types and are checked as `ops` are, and cost nothing.
    """

    model: nn.Module
    calls: tuple[Call, ...]
    runs: tuple[RecordedRun, ...]
    ops: tuple[OpRecord, ...]
    storages: tuple[Storage, ...]
    states: dict[str, State]
    equations: tuple[Any, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    unknown_ops: tuple[UnknownOp, ...]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    layers: tuple[Layer, ...] = ()
    left_out: tuple[Layer, ...] = ()  # of a graph without some of its layers: these, and what the model notes of them
    layer_notes: tuple[dict[str, int], dict[str, list[int]]] = ({}, {})
    ragged: tuple[Ragged, ...] = ()  # of each group that another one leads everywhere: whether its units may differ
    further_ops: tuple[OpRecord, ...] = ()
    modes: dict[str, bool] = field(default_factory=dict)  # module name -> whether it was in training mode
    draw: float | None = None  # what every single random number of the run was
    written: frozenset[str] = frozenset()  # parameters and buffers whose values the run changes
    tie: tuple[tuple[Named, Named], ...] = ()  # the places that the user ties: names, patterns or (tensor, dim)
    unreached: tuple[Unreached, ...] = ()
    weights: WeightSource | None = None  # where the values of tensors are read from; None: the model has them

    @property
    def call(self) -> Call:
        """The first call."""
        return self.calls[0]

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of the first call."""
        return self.call.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the first call."""
        return self.call.kwargs

    @property
    def real(self) -> bool:
        """Whether the first call was recorded on real values, because the control flow depends on data."""
        return self.runs[0].real

    @property
    def all_ops(self) -> tuple[OpRecord, ...]:
        """The operators of all runs."""
        return (*self.ops, *self.further_ops)

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError where there is none."""
        return {g.name: g for g in self.groups}[name]

    def cost(self, counts: Mapping[str, int] | None = None) -> Cost:
        """The cost of the model with `counts` units kept per group name; of the model as it is without."""
        from bough.cost import cost_of

        return cost_of(self, counts)

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter, buffer or tensor attribute called `name`."""
        return held_tensor(self.model, name) if self.weights is None else self.weights.tensor(name)

    def __str__(self) -> str:
        head = f"{'group':48} {'kind':9} {'units':>6} {'places':>6}  exact"
        lines = [head, "-" * len(head)]
        for g in self.groups:
            lines.append(f"{g.name:48} {g.kind:9} {g.size:6} {len(g.members):6}  {'yes' if g.exact else 'renormalizes'}")
        if any(r.reason is None for r in self.ragged):
            lines += ["", "may be other units for each unit of another group (ragged):"]
            lines += [f"  {r.group}: for each of {r.over}" for r in self.ragged if r.reason is None]
        if self.layers:
            lines += ["", "layers that can be left out, by the names that drop takes:"]
            lines += [f"  {x.name}: {'exact' if x.exact else 'not residual'}" for x in self.layers]
        if self.frozen:
            lines += ["", "frozen:"]
            lines += [f"  {f.name} ({f.size} units): {f.reason}" for f in self.frozen]
        if self.unknown_ops:
            lines += ["", "unknown ops (all they touch is frozen):", *(f"  {u}" for u in self.unknown_ops)]
        if self.unreached:
            lines += ["", *unreached_lines(self.unreached)]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        return {
            "groups": [g.to_dict() for g in self.groups],
            "layers": [x.to_dict() for x in self.layers],
            "ragged": [r.to_dict() for r in self.ragged],
            "frozen": [f.to_dict() for f in self.frozen],
            "unknown_ops": [str(u) for u in self.unknown_ops],
            "cost": self.cost().to_dict(),
            "notes": list(self.notes),
            "unreached": {u.name: u.treatment for u in self.unreached},
        }


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


def held_tensor(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter, buffer or tensor attribute of `model` called `name`; of one in a container the name ends in its keys."""
    place, *keys = name.removesuffix("]").replace("][", "[").split("[")
    *path, leaf = place.split(".")
    owner = model
    for key in path:  # `get_submodule` does the same through `__getattr__`, five times as slowly
        inner = owner._modules[key]
        assert inner is not None
        owner = inner
    held = (owner._parameters, owner._buffers, owner.__dict__)
    value: Any = next((values[leaf] for values in held if leaf in values), None)
    for key in keys:
        value = _entry(value, key)
    assert isinstance(value, torch.Tensor)
    return value


def module_of(name: str) -> str:
    """The name of the module that holds the parameter, buffer or tensor attribute called `name`.

    Example:
        >>> module_of("encoder.rnn.weight_hh_l0"), module_of("encoder.rnn.hidden[0]"), module_of("cache[layer.1]")
        ('encoder.rnn', 'encoder.rnn', '')
    """
    return name.partition("[")[0].rpartition(".")[0]


def _entry(value: Any, key: str) -> Any:
    """What a container or an object holds under a key that is written as text."""
    if isinstance(value, Mapping):
        return next((v for k, v in value.items() if str(k) == key), None)
    if isinstance(value, Sequence):
        return value[int(key)]
    return value[int(key)] if isinstance(value, deque) else getattr(value, "__dict__", {}).get(key)


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
