"""The value that tracing hands on: recorded runs, and the groups of units that their types allow to cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bough.calls import Call
from bough.graph.closed_form import cost_of
from bough.graph.cost import Cost
from bough.graph.model_tensors import model_tensor
from bough.graph.records import (
    Frozen,
    Group,
    Layer,
    Named,
    OpRecord,
    Ragged,
    RecordedRun,
    State,
    Storage,
    UnknownOp,
    Unreached,
    unreached_lines,
)
from bough.graph.weight_source import WeightSource


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
        return cost_of(self, counts)

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter, buffer or tensor attribute called `name`."""
        return model_tensor(self.model, name) if self.weights is None else self.weights.tensor(name)

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
