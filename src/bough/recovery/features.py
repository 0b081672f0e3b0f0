"""Features of a student beside those of its teacher: which units match is read from the types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning import Plan
from bough.recovery.consumers import PRODUCTS, output_dim
from bough.recovery.pairing import folded, kept_units, renamed
from bough.spaces import Atom, Each, Kept, Space, indices, normal
from bough.tracing.wrapped import unwrap


class Features(nn.Module):
    """The distance between the outputs of modules of a student and of its teacher: a mean of squares over matching units.

    Each pair's distance is divided by the mean square of the teacher's feature, so no layer outweighs the others.

    - of a student that was cut from the teacher (`plan`): the plan and the types of `graph` say which of the teacher's units
      the student has kept, along every axis; only these are compared, and nothing is learned. Names are the teacher's; where
      layers were left out, those after them have other names in the student.
    - of any other student: where the widths differ, a learned linear projection takes the student's feature to the
      teacher's width, along dim 1 of outputs [N, C, H, W] (or [N, C, L] of convolutions), the last dim of others.

    Args:
        graph: of the teacher.
        names: modules to compare, or {student's module: teacher's module}.
        plan: that the student was cut by.
        student: the graph of a student that was not cut from the teacher.

    Raises:
        PlanError: a name that no module has, a module that gives no tensor, or neither `plan` nor `student`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> small, match = bough.cut(net, plan), Features(graph, ["1"], plan=plan)
        >>> x = torch.randn(5, 4)
        >>> with match.watch(small, net) as seen:
        ...     _ = small(x), net(x)
        >>> match(seen).item()
        0.0
    """

    def __init__(
        self, graph: Graph, names: Iterable[str] | Mapping[str, str], *, plan: Plan | None = None, student: Graph | None = None
    ) -> None:  # fmt: skip
        check_arguments(Features.__init__, locals())
        super().__init__()
        if (plan is None) == (student is None):
            raise PlanError("Features needs either the plan that the student was cut by, or the student's graph")
        self.pairs = dict(names) if isinstance(names, Mapping) else {_renamed(n, plan): n for n in names}
        if not self.pairs:
            raise PlanError("Features(names=[]) compares nothing: name at least one module")
        self._selected: dict[str, dict[int, Tensor]] = {}
        self._factors: dict[str, Tensor] = {}
        self.projections = nn.ModuleDict()
        kept = kept_units(graph, plan) if plan is not None else {}
        for own, other in self.pairs.items():
            op = _output(graph, other)
            axes = op.results[0]
            if plan is not None:
                _refuse_ragged(other, axes, kept)
                chosen = {d: indices(a, kept) for d, a in enumerate(axes)}
                self._selected[own] = {d: torch.from_numpy(i) for d, i in chosen.items() if len(i) < axes[d].size}
                scales = [s for s in plan.scales if s.name in op.states and op.name in PRODUCTS and s.dim == output_dim(op)]
                weights = [s for s in scales if len(graph.states[s.name].axes) > 1]  # the bias has the same ones
                if weights:
                    self._factors[own] = folded(op, weights, kept)
            elif student is not None:
                sizes = [a.size for a in _output(student, own).results[0]]
                dim = _channels(student, own, len(sizes))
                if sizes[dim] != axes[dim].size:
                    first = next(student.model.parameters())
                    made = nn.Linear(sizes[dim], axes[dim].size, bias=False).to(first.device, first.dtype)
                    self.projections[_key(own)] = _Projection(made, dim)

    def forward(self, seen: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> Tensor:
        """The mean distance over the pairs, of what `watch` gave after both models have run."""
        student, teacher = seen
        return torch.stack([self._distance(student[a], teacher[b].detach(), a) for a, b in self.pairs.items()]).mean()

    def _distance(self, own: Tensor, wanted: Tensor, name: str) -> Tensor:
        for dim, kept in self._selected.get(name, {}).items():
            wanted = wanted.index_select(dim, kept.to(wanted.device))
        if name in self._factors:
            wanted = wanted * self._factors[name].to(wanted)
        if _key(name) in self.projections:
            own = self.projections[_key(name)](own)
        if own.shape != wanted.shape:
            raise PlanError(f"the output of {name!r} is {list(own.shape)} in the student, and {list(wanted.shape)} is to match")
        return F.mse_loss(own, wanted) / wanted.square().mean().clamp_min(torch.finfo(wanted.dtype).tiny)

    @contextmanager
    def watch(self, student: nn.Module, teacher: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Records the modules' outputs of both models while they run inside."""
        seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        handles = []
        for model, names, found in zip((student, teacher), (self.pairs, self.pairs.values()), seen, strict=True):
            for name in names:
                handles.append(unwrap(model).get_submodule(name).register_forward_hook(_recorder(found, name)))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


class _Projection(nn.Module):
    def __init__(self, linear: nn.Linear, dim: int) -> None:
        super().__init__()
        self.linear, self.dim = linear, dim

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(self.dim, -1)).movedim(-1, self.dim)


def _recorder(found: dict[str, Tensor], name: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0] if isinstance(output, (tuple, list)) else None
        if not isinstance(first, Tensor):
            raise PlanError(f"{name!r} gives a {type(output).__name__}, not a tensor: compare another module")
        found[name] = first

    return record


def _output(graph: Graph, name: str) -> OpRecord:
    """The op that makes the output of a module: the last one in it whose result is read outside, if one is."""
    if all(name != n for n, _ in graph.model.named_modules()):
        raise PlanError(f"Features names {name!r}, which is no module of {type(graph.model).__name__}")
    inside = [op for op in graph.ops if op.results and (op.module == name or op.module.startswith(f"{name}.") or not name)]
    if not inside:
        raise PlanError(f"no op runs in {name!r}: compare another module")
    own = {op.index for op in inside}
    read = {value for op in graph.ops if op.index not in own for value in op.inputs}
    return next((op for op in reversed(inside) if not read.isdisjoint(op.values)), inside[-1])


def _channels(graph: Graph, name: str, dims: int) -> int:
    """The dim of an output that has the features."""
    convolves = any("conv" in op.name for op in graph.ops if op.module == name or op.module.startswith(f"{name}."))
    return 1 if dims >= 4 or (dims == 3 and convolves) else dims - 1


def _renamed(name: str, plan: Plan | None) -> str:
    for layer in plan.left_out if plan else ():
        if name == layer or name.startswith(f"{layer}."):
            raise PlanError(f"Features names {name!r}, and the plan leaves out {layer}: compare another module")
    return renamed(name, plan) if plan else name


def _refuse_ragged(name: str, axes: Sequence[Space], kept: Mapping[Atom, Kept]) -> None:
    if any(isinstance(kept.get(atom), Each) for axis in axes for atom in normal(axis).atoms):
        raise PlanError(f"the output of {name!r} is cut raggedly: its units match no one set of the teacher's")


def _key(name: str) -> str:
    return name.replace(".", "/")
