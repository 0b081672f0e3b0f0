"""Correspondence between a model and the model cut from it: units, names, recorded operators and values."""

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
from bough.tracing.capture.execution import model_tensors
from bough.tracing.flow import LAYERS

PRODUCTS = (*LAYERS, "addmm")
"""Operators whose weight has its outputs along `output_dim`."""


def output_dim(op: OpRecord) -> int:
    """Return the dim of the outputs in the weight of one of `PRODUCTS`."""
    return 1 if op.name == "addmm" else 0


def check_cut_shapes(small: nn.Module, plan: Plan) -> None:
    """Raise PlanError if a tensor of `small` has another shape than the plan cuts it to."""
    shapes = {n: list(t.shape) for n, t, _, _ in model_tensors(small)}
    for name, original in plan.original_shapes.items():
        kept = plan.kept.get(name, {})
        expected = [len(kept.get(dim, range(n))) for dim, n in enumerate(original)]
        shape = shapes.get(name_after_cut(name, plan), expected)
        if shape != expected and not any(name.startswith(f"{layer}.") for layer in plan.left_out):
            raise PlanError(
                f"small was not cut by this plan: its {name} has shape {shape}, and the plan's has {expected}"
            )  # fmt: skip


def kept_units(graph: Graph, plan: Plan) -> dict[Atom, Kept]:
    """Return what the plan keeps of each atom of the dense model's graph; atoms that stay whole are absent."""
    kept: dict[Atom, Kept] = {}
    ragged: list[tuple[Space, list[int]]] = []
    for name, dims in plan.kept.items():
        for dim, index in dims.items():
            space = normal(graph.states[name].axes[dim])
            units = {atom: _units_in(space, atom, index) for atom in space.atoms}
            if len(indices(space, {**kept, **units})) == len(index):
                kept.update({a: u for a, u in units.items() if len(u) < a.size})
            else:
                ragged.append((space, index))
    atoms = {g.name: g.atom for g in graph.groups}
    over = {atoms[n]: atoms[other] for n, other in plan.ragged.items() if n in atoms}
    for space, index in ragged:
        for atom in space.atoms:
            if atom in over:
                kept[atom] = _units_per_unit(space, atom, over[atom], index)
            elif len(units_kept := _units_in(space, atom, index)) < atom.size:
                kept[atom] = units_kept
    return kept


def _units_in(space: Space, atom: Atom, index: Sequence[int]) -> Indices:
    """Return the units of `atom` that occur at the indices `index` of `space`, ascending."""
    units = np.unique([c[list(index)] for c in coordinates(space, atom)])
    return units[units >= 0].astype(np.int64)


def _units_per_unit(space: Space, atom: Atom, over: Atom, index: Sequence[int]) -> Each:
    """Return the units of `atom` that occur at `index`, for each unit of the atom `over`."""
    units, others = (coordinates(space, a)[0][list(index)] for a in (atom, over))
    rows = [np.unique(units[others == o]) for o in range(over.size)]  # a fused projection has each unit several times
    count = max(map(len, rows))
    return Each(over, np.stack([r if len(r) else np.arange(count) for r in rows]).astype(np.int64))


def select_kept(tensor: Tensor, axes: Sequence[Space], kept: Mapping[Atom, Kept]) -> Tensor | None:
    """Return the kept units of a tensor of the dense run; None if an axis mixes units that are cut with data.

    Args:
        tensor: from a run of the dense model.
        axes: index spaces of its dims.
        kept: as `kept_units` returns it.
    """
    for dim, axis in enumerate(axes):
        space = normal(axis)
        if not any(a in kept for a in space.atoms):
            continue
        if space.size != tensor.shape[dim]:
            return None
        tensor = tensor.index_select(dim, torch.from_numpy(indices(space, kept)).to(tensor.device))
    return tensor


def folded_factors(op: OpRecord, scales: Sequence[Scale], kept: Mapping[Atom, Kept]) -> Tensor:
    """Return the factors by which scales of weight rows multiply the kept outputs of a linear layer or convolution.

    Args:
        op: of the dense run.
        scales: of the op's weight, along its output dim.
        kept: as `kept_units` returns it.

    Returns:
        Float64, in a shape that broadcasts over the output.
    """
    convolves = op.name.endswith("convolution")
    axis = op.results[0][1 if convolves else -1]
    factors = torch.ones(axis.size, dtype=torch.float64)
    for s in scales:
        factors[list(s.indices)] *= s.factor
    kept_factors = factors[torch.from_numpy(indices(axis, kept))]
    return kept_factors.view(-1, *(1,) * (len(op.results[0]) - 2)) if convolves else kept_factors


def match_ops(dense: Graph, small: Graph, plan: Plan) -> dict[int, OpRecord]:
    """Return, for the index of each operator of the cut model, the corresponding operator of the dense model."""
    left_out = tuple(f"{layer}." for layer in plan.left_out)
    remaining = [op for op in dense.ops if not f"{op.module}.".startswith(left_out)]
    dense_ops = {key: op for op, key in _with_keys(remaining, plan)}
    return {op.index: dense_ops[key] for op, key in _with_keys(small.ops, None) if key in dense_ops}


def _with_keys(ops: Sequence[OpRecord], plan: Plan | None) -> list[tuple[OpRecord, tuple[str, str, str, int]]]:
    """Return each operator with (module name in the cut model, source line, operator, occurrence)."""
    occurrences: Counter[tuple[str, str, str]] = Counter()
    keyed = []
    for op in ops:
        site = (name_after_cut(op.module, plan) if plan else op.module, op.where, op.name)
        keyed.append((op, (*site, occurrences[site])))
        occurrences[site] += 1
    return keyed


def name_after_cut(name: str, plan: Plan) -> str:
    """Return the name in the cut model of a module, or of a module's tensor: lists are renumbered if layers are left out."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        container = ".".join(name.split(".")[:i])
        removed = [
            x.rpartition(".")[2] for x, (_, closes) in plan.left_out.items() if closes and x.rpartition(".")[0] == container
        ]
        if part.isdigit():
            parts[i] = str(int(part) - sum(int(r) < int(part) for r in removed if r.isdigit()))
    return ".".join(parts)


def changed_values(graph: Graph, plan: Plan, kept: Mapping[Atom, Kept]) -> set[int]:
    """Return the values of the dense run that differ in the cut model, even on the kept units.

    These are the results of operators that sum over cut units, the outputs of layers left out, and everything computed from
    them.
    """
    values = {p.leaves for layer in graph.layers if layer.name in plan.left_out for p in layer.module_calls}
    for op in graph.ops:
        sums_over_cut = any(a in kept for s in op.combined for a in normal(s).atoms)
        if sums_over_cut or values.intersection(op.inputs):
            values.update(op.values)
    return values
