"""The two runs side by side: which op of the cut model does what which op of the dense one does, on which of its units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning.plan import Plan, Scale
from bough.spaces import Atom, Each, Indices, Kept, Space, coordinates, indices, normal
from bough.tracing.execution import held_tensors


def check_cut(small: nn.Module, plan: Plan) -> None:
    """Raises PlanError where `small` has a tensor of other than the shape that the plan cuts it to."""
    found = {n: list(t.shape) for n, t, _, _ in held_tensors(small)}
    for name, whole in plan.original_shapes.items():
        cut = plan.kept.get(name, {})
        shape = [len(cut.get(dim, range(n))) for dim, n in enumerate(whole)]
        own = found.get(renamed(name, plan), shape)
        if own != shape and not any(name.startswith(f"{layer}.") for layer in plan.left_out):
            raise PlanError(f"small was not cut by this plan: its {name} has shape {own}, and the plan's has {shape}")


def kept_units(graph: Graph, plan: Plan) -> dict[Atom, Kept]:
    """What the plan keeps of each atom of the dense model's graph; atoms that stay whole are absent."""
    found: dict[Atom, Kept] = {}
    differing: list[tuple[Space, list[int]]] = []
    for name, dims in plan.kept.items():
        for dim, index in dims.items():
            space = normal(graph.states[name].axes[dim])
            parts = {atom: _units(space, atom, index) for atom in space.atoms}
            if len(indices(space, {**found, **parts})) == len(index):
                found.update({a: u for a, u in parts.items() if len(u) < a.size})
            else:
                differing.append((space, index))
    atoms = {g.name: g.atom for g in graph.groups}
    leading = {atoms[n]: atoms[over] for n, over in plan.ragged.items() if n in atoms}
    for space, index in differing:
        for atom in space.atoms:
            if atom in leading:
                found[atom] = _each(space, atom, leading[atom], index)
            elif len(units := _units(space, atom, index)) < atom.size:
                found[atom] = units
    return found


def _units(space: Space, atom: Atom, index: Sequence[int]) -> Indices:
    units = np.unique([c[list(index)] for c in coordinates(space, atom)])
    return units[units >= 0].astype(np.int64)


def _each(space: Space, atom: Atom, over: Atom, index: Sequence[int]) -> Each:
    units, others = (coordinates(space, a)[0][list(index)] for a in (atom, over))
    rows = [np.unique(units[others == o]) for o in range(over.size)]  # a fused projection has each unit several times
    most = max(map(len, rows))
    return Each(over, np.stack([r if len(r) else np.arange(most) for r in rows]).astype(np.int64))


def select(tensor: Tensor, axes: Sequence[Space], kept: Mapping[Atom, Kept]) -> Tensor | None:
    """The kept units of a tensor of the dense run; None where an axis mixes units that are cut with data."""
    for dim, axis in enumerate(axes):
        space = normal(axis)
        if not any(a in kept for a in space.atoms):
            continue
        if space.size != tensor.shape[dim]:
            return None
        tensor = tensor.index_select(dim, torch.from_numpy(indices(space, kept)).to(tensor.device))
    return tensor


def folded(op: OpRecord, scales: Sequence[Scale], kept: Mapping[Atom, Kept]) -> Tensor:
    """What scales of the rows of a linear layer's or convolution's weight multiply its kept outputs by, to be broadcast."""
    convolves = op.name.endswith("convolution")
    axis = op.results[0][1 if convolves else -1]
    factors = torch.ones(axis.size, dtype=torch.float64)
    for s in scales:
        factors[list(s.indices)] *= s.factor
    found = factors[torch.from_numpy(indices(axis, kept))]
    return found.view(-1, *(1,) * (len(op.results[0]) - 2)) if convolves else found


def twins(dense: Graph, small: Graph, plan: Plan) -> dict[int, OpRecord]:
    """For the number of each op of the cut model: the op of the dense one."""
    gone = tuple(f"{layer}." for layer in plan.left_out)
    theirs = {key: op for op, key in _keyed([op for op in dense.ops if not f"{op.module}.".startswith(gone)], plan)}
    return {op.index: theirs[key] for op, key in _keyed(small.ops, None) if key in theirs}


def _keyed(ops: Sequence[OpRecord], plan: Plan | None) -> list[tuple[OpRecord, tuple[str, str, str, int]]]:
    """Each op with its module, line, name, and which of those it is."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for op in ops:
        site = (renamed(op.module, plan) if plan else op.module, op.where, op.name)
        found.append((op, (*site, seen[site])))
        seen[site] += 1
    return found


def renamed(name: str, plan: Plan) -> str:
    """The name in the cut model of a module, or of a tensor that one holds: lists close up where layers are left out."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        container = ".".join(name.split(".")[:i])
        before = [
            x.rpartition(".")[2] for x, (_, closes) in plan.left_out.items() if closes and x.rpartition(".")[0] == container
        ]
        if part.isdigit():
            parts[i] = str(int(part) - sum(int(b) < int(part) for b in before if b.isdigit()))
    return ".".join(parts)


def lossy(graph: Graph, plan: Plan, kept: Mapping[Atom, Kept]) -> set[int]:
    """Numbers of the values of the dense run that the cut model does not have on the kept units: what sums over units that
    are cut, what layers left out would have given, and all that follows."""
    values = {p.leaves for layer in graph.layers if layer.name in plan.left_out for p in layer.passages}
    for op in graph.ops:
        summed = any(a in kept for s in op.combined for a in normal(s).atoms)
        if summed or values.intersection(op.inputs):
            values.update(op.values)
    return values
