"""Distance between outputs of modules of a student and of its teacher; the axis types state which units correspond."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning import Plan
from bough.recovery.correspondence import PRODUCTS, folded_factors, kept_units, name_after_cut, output_dim
from bough.spaces import Atom, Each, Kept, Space, indices, normal
from bough.tracing.capture.wrapped import unwrap

FeaturePair = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Outputs by module name: of the student, and of the teacher."""


class Features(nn.Module):
    """Mean squared distance between outputs of modules of a student and of its teacher.

    Each pair's distance is divided by the mean square of the teacher's output, so that all pairs have the same scale.

    For a student that was cut from the teacher, give `plan`: the plan and the axis types of `graph` state which of the
    teacher's units the student has kept along every axis. Only these are compared, and nothing is learned. Modules are named
    as in the teacher; if the plan leaves layers out, later layers have other names in the student.

    For any other student, give `student`: where widths differ, a learned linear projection maps the student's output to the
    teacher's width, along dim 1 of outputs [N, C, H, W] (or [N, C, L] of convolutions) and along the last dim of others.

    Args:
        graph: of the teacher.
        names: modules to compare, or {student's module: teacher's module}.
        plan: by which the student was cut.
        student: the graph of a student that was not cut from the teacher.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a name that no module has, a module that returns no tensor, or not exactly one of `plan` and `student`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> small, match = bough.cut(net, plan), Features(graph, ["1"], plan=plan)
        >>> x = torch.randn(5, 4)
        >>> with match.watch(small, net) as features:
        ...     _ = small(x), net(x)
        >>> round(match(features).item(), 6)
        0.0
    """

    def __init__(
        self, graph: Graph, names: Iterable[str] | Mapping[str, str], *, plan: Plan | None = None, student: Graph | None = None
    ) -> None:  # fmt: skip
        check_arguments(Features.__init__, locals())
        super().__init__()
        if (plan is None) == (student is None):
            raise PlanError("Features needs either the plan that the student was cut by, or the student's graph")
        self.pairs = dict(names) if isinstance(names, Mapping) else {_student_name(n, plan): n for n in names}
        if not self.pairs:
            raise PlanError("Features(names=[]) compares nothing: name at least one module")
        self._selected: dict[str, dict[int, Tensor]] = {}
        self._factors: dict[str, Tensor] = {}
        self.projections = nn.ModuleDict()
        kept = kept_units(graph, plan) if plan is not None else {}
        for student_name, teacher_name in self.pairs.items():
            op = _output_op(graph, teacher_name)
            if plan is not None:
                self._select_units(student_name, teacher_name, op, plan, kept, graph)
            elif student is not None:
                self._add_projection(student_name, student, op.results[0])

    def _select_units(
        self, student_name: str, teacher_name: str, op: OpRecord, plan: Plan, kept: Mapping[Atom, Kept], graph: Graph
    ) -> None:
        """Store which of the teacher's units a cut student has kept, and the factors that the plan folded into them."""
        axes = op.results[0]
        _reject_ragged(teacher_name, axes, kept)
        chosen = {d: indices(a, kept) for d, a in enumerate(axes)}
        self._selected[student_name] = {d: torch.from_numpy(i) for d, i in chosen.items() if len(i) < axes[d].size}
        scales = [s for s in plan.scales if s.name in op.states and op.name in PRODUCTS and s.dim == output_dim(op)]
        weights = [s for s in scales if len(graph.states[s.name].axes) > 1]  # a bias has the same factors
        if weights:
            self._factors[student_name] = folded_factors(op, weights, kept)

    def _add_projection(self, student_name: str, student: Graph, axes: Sequence[Space]) -> None:
        """Add a projection to the teacher's width, if the student's differs."""
        sizes = [a.size for a in _output_op(student, student_name).results[0]]
        dim = _channel_dim(student, student_name, len(sizes))
        if sizes[dim] != axes[dim].size:
            first = next(student.model.parameters())
            linear = nn.Linear(sizes[dim], axes[dim].size, bias=False).to(first.device, first.dtype)
            self.projections[_key(student_name)] = _Projection(linear, dim)

    def forward(self, features: FeaturePair) -> Tensor:
        """Return the mean distance over the pairs of outputs that `watch` recorded."""
        student, teacher = features
        return torch.stack([self._distance(student[a], teacher[b].detach(), a) for a, b in self.pairs.items()]).mean()

    def _distance(self, student: Tensor, teacher: Tensor, name: str) -> Tensor:
        for dim, kept in self._selected.get(name, {}).items():
            teacher = teacher.index_select(dim, kept.to(teacher.device))
        if name in self._factors:
            teacher = teacher * self._factors[name].to(teacher)
        if _key(name) in self.projections:
            student = self.projections[_key(name)](student)
        if student.shape != teacher.shape:
            raise PlanError(
                f"the output of {name!r} is {list(student.shape)} in the student, and {list(teacher.shape)} is to match"
            )
        return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)

    @contextmanager
    def watch(self, student: nn.Module, teacher: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Record the outputs of the modules while both models run inside the context.

        Raises:
            PlanError: from a call of a model: a module returns no tensor.
        """
        features: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        handles = []
        for model, names, recorded in zip((student, teacher), (self.pairs, self.pairs.values()), features, strict=True):
            for name in names:
                handles.append(unwrap(model).get_submodule(name).register_forward_hook(_recorder(recorded, name)))
        try:
            yield features
        finally:
            for handle in handles:
                handle.remove()


class _Projection(nn.Module):
    """A linear map along one dim."""

    def __init__(self, linear: nn.Linear, dim: int) -> None:
        super().__init__()
        self.linear, self.dim = linear, dim

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(self.dim, -1)).movedim(-1, self.dim)


def _recorder(recorded: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    """Return a forward hook that stores the output, or its first item, under `name`."""

    def record(module: nn.Module, inputs: object, output: object) -> None:
        first = output if isinstance(output, Tensor) else output[0] if isinstance(output, (tuple, list)) else None
        if not isinstance(first, Tensor):
            raise PlanError(f"{name!r} gives a {type(output).__name__}, not a tensor: compare another module")
        recorded[name] = first

    return record


def _output_op(graph: Graph, name: str) -> OpRecord:
    """Return the operator that computes a module's output: the last one inside whose result is read outside, or the last."""
    if all(name != n for n, _ in graph.model.named_modules()):
        raise PlanError(f"Features names {name!r}, which is no module of {type(graph.model).__name__}")
    inside = [op for op in graph.ops if op.results and (op.module == name or op.module.startswith(f"{name}.") or not name)]
    if not inside:
        raise PlanError(f"no op runs in {name!r}: compare another module")
    inside_indices = {op.index for op in inside}
    read_outside = {value for op in graph.ops if op.index not in inside_indices for value in op.inputs}
    return next((op for op in reversed(inside) if not read_outside.isdisjoint(op.values)), inside[-1])


def _channel_dim(graph: Graph, name: str, dims: int) -> int:
    """Return the dim of the features in the output of a module, which has `dims` dims."""
    convolves = any("conv" in op.name for op in graph.ops if op.module == name or op.module.startswith(f"{name}."))
    return 1 if dims >= 4 or (dims == 3 and convolves) else dims - 1


def _student_name(name: str, plan: Plan | None) -> str:
    """Return the name in the student of a module of the teacher."""
    for layer in plan.left_out if plan else ():
        if name == layer or name.startswith(f"{layer}."):
            raise PlanError(f"Features names {name!r}, and the plan leaves out {layer}: compare another module")
    return name_after_cut(name, plan) if plan else name


def _reject_ragged(name: str, axes: Sequence[Space], kept: Mapping[Atom, Kept]) -> None:
    """Raise PlanError if an axis keeps different units for each unit of another group."""
    if any(isinstance(kept.get(atom), Each) for axis in axes for atom in normal(axis).atoms):
        raise PlanError(f"the output of {name!r} is cut raggedly: its units match no one set of the teacher's")


def _key(name: str) -> str:
    """Return a module name as a key of `nn.ModuleDict`, which may not contain dots."""
    return name.replace(".", "/")
