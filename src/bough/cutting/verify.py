"""`verify`: is the cut model the masked original?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bough.arguments import check_arguments
from bough.cutting.cut import copied, mask
from bough.errors import PlanError, TraceError
from bough.graph import Graph, OpRecord
from bough.planning.plan import Plan
from bough.spaces import Atom, Space, indices, normal
from bough.tracing.caches import fresh_caches
from bough.tracing.execution import Execution, OnStandIns
from bough.tracing.inputs import with_tensors
from bough.tracing.stream import Call, swap, tensors_in
from bough.tracing.trace import run, split_inputs, trace
from bough.tracing.tree import output_tensors
from bough.tracing.wrapped import eagerly, unwrap


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the cut model is from its masked original.

    `max_error`: largest absolute difference over all outputs; `scale`: largest absolute output of the masked original.
    `exact_groups` were compared with plain zeros; over `renormalizing_groups` a statistic runs, and the masked original
    took it over the kept units only.
    """

    max_error: float
    scale: float
    dtype: str
    exact_groups: tuple[str, ...]
    renormalizing_groups: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Within rounding of the compared dtype."""
        return self.max_error <= (1e-9 if self.dtype == "float64" else 1e-3) * max(self.scale, 1.0)

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "NOT equal"
        how = f"{len(self.exact_groups)} exact groups"
        if self.renormalizing_groups:
            how += f", {len(self.renormalizing_groups)} renormalizing ones against statistics over kept units"
        return f"masked original and cut model are {verdict}: largest error {self.max_error:.2e} ({self.dtype}; {how})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_error": self.max_error, "scale": self.scale, "dtype": self.dtype, "equal": self.equal,
            "exact_groups": list(self.exact_groups), "renormalizing_groups": list(self.renormalizing_groups),
        }  # fmt: skip


def verify(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, *, dtype: torch.dtype | None = torch.float64
) -> Verification:
    """Runs the masked original and the cut model in eval mode and compares all outputs.

    Args:
        model: the original, which stays as it is. small: the cut model. plan: the plan between them.
        example_inputs: as for `trace`.
        dtype: floats are converted to this for the comparison (on copies); None compares as they are, and so does a model
            with an op that has no such precision: `Verification.dtype` tells.
    """
    check_arguments(verify, locals())
    try:
        expected, actual = _outputs(model, small, plan, example_inputs, dtype)
    except (RuntimeError, TraceError):  # an op that has no such precision
        if dtype is None:
            raise
        dtype = None
        expected, actual = _outputs(model, small, plan, example_inputs, dtype)
    if len(expected) != len(actual):
        raise PlanError(f"the cut model returns {len(actual)} tensors, the original {len(expected)}")
    error = scale = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            raise PlanError(f"an output has shape {list(b.shape)} after the cut, and {list(a.shape)} before")
        if a.numel() and (a.is_floating_point() or a.is_complex()):
            apart = torch.where(a == b, torch.zeros_like(a.abs()), (a - b).abs())  # equal infinities are equal
            error = max(error, float(apart.nan_to_num(float("inf"), float("inf")).max()))
            scale = max(scale, float(a.abs().nan_to_num(0.0).max()))
    cut = tuple(n for n, (k, t) in plan.groups.items() if k < t)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    name = str(dtype or own).removeprefix("torch.")
    renormalizing = tuple(n for n in cut if n in plan.renormalizing)
    return Verification(error, scale, name, tuple(n for n in cut if n not in plan.renormalizing), renormalizing)


def _outputs(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor]]:
    reference = unwrap(mask(model, plan)).eval()
    compared = unwrap(copied(small, lambda name, tensor, parameter: tensor.clone())[0]).eval()
    if dtype is not None:
        reference, compared = reference.to(dtype), compared.to(dtype)
    args, kwargs = split_inputs(_cast(example_inputs, dtype))
    with torch.no_grad(), _Precisely(dtype), eagerly():
        expected = list(output_tensors(_kept_only(reference, plan, args, kwargs)).values())
        with fresh_caches(compared):
            actual = list(output_tensors(compared(*_cast(args, None), **_cast(kwargs, None))).values())
    return expected, actual


class _Precisely(TorchDispatchMode):
    """Floats that a model asks for by dtype are made in the compared dtype, where that is the wider one: many compute
    rotary angles or a softmax in float32, whose last bits depend on how wide the tensor is."""

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("dtype")
        if self.dtype is not None and asked is not None and asked.is_floating_point and asked.itemsize < self.dtype.itemsize:
            kwargs = {**kwargs, "dtype": self.dtype}
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A copy, its floats in `dtype`."""
    return with_tensors(value, lambda t: t.to(dtype) if dtype is not None and t.is_floating_point() else t.clone())


def _kept_only(reference: nn.Module, plan: Plan, args: Any, kwargs: Any) -> Any:
    """The masked model's outputs, with each statistic over cut units taken over the kept ones."""
    graph = trace(reference, kwargs or args, real=True)
    names = {g.name: g for g in graph.groups}
    kept: dict[Atom, Any] = {}
    for group in names.values():
        member = next((m for m in group.members if m.dim in plan.kept.get(m.name, {})), None)
        if member is not None:
            kept[group.atom] = _units(graph, group.atom, member.name, member.dim, plan)
    execution = Execution(reference, True)
    handler = _KeptOnly(graph, kept, execution)
    return run(handler, execution, reference, args, kwargs, lambda path, n: n)


def _units(graph: Graph, atom: Atom, name: str, dim: int, plan: Plan) -> Any:
    import numpy as np

    from bough.spaces import coordinates

    (units, *_) = coordinates(graph.states[name].axes[dim], atom)
    found = np.unique(units[plan.kept[name][dim]])
    return found[found >= 0]


class _KeptOnly(OnStandIns):
    """Runs for real; an op with a statistic over cut units is run on the kept ones, its result spread out with zeros.

    The statistics may lead the run along another path than the traced one (a router chooses among kept experts only);
    what is not next in the recorded run is then told by its line and module.
    """

    def __init__(self, graph: Graph, kept: Mapping[Atom, Any], execution: Execution) -> None:
        super().__init__(execution)
        self.graph, self.kept = graph, kept
        self._sites = {(op.name, op.where, op.module): op for op in graph.ops}
        self._modules = {id(m): name for name, m in graph.model.named_modules()}
        self._aligned = True

    def _record(self, call: Call) -> OpRecord:
        ops = self.graph.ops
        self._aligned = self._aligned and call.index < len(ops) and ops[call.index].name == call.name
        if self._aligned and ops[call.index].where == call.where:
            return ops[call.index]
        self._aligned = False
        found = self._sites.get((call.name, call.where, self._modules.get(id(call.module), "")))
        if found is None:
            raise PlanError(
                f"the masked model takes a path that was not traced ({call.name}, {call.where}): its control flow depends on "
                "data; trace and verify on inputs that take the same path"
            )
        return found

    def op(self, call: Call) -> Any:
        record = self._record(call)
        if not any(a in self.kept for s in (*record.renormalized, *record.undefined) for a in normal(s).atoms):
            return call.func(*call.args, **call.kwargs)
        axes = iter(record.arguments)
        args = swap(call.args, lambda t: self._slice(t, next(axes)))
        kwargs = {k: swap(v, lambda t: self._slice(t, next(axes))) for k, v in call.kwargs.items()}
        args = _adapted(call.name, args, record, self.kept)
        if record.scale_of is not None:  # attention scales by the width of the original
            kwargs["scale"] = record.scale_of.size**-0.5
        result = call.func(*args, **kwargs)
        results = [self._spread(t, a) for t, a in zip(tensors_in(result), record.results, strict=True)]
        results = [self._numbered(t, r) for t, r in zip(results, record.ranges, strict=True)]
        return (
            results[0]
            if isinstance(result, Tensor)
            else type(result)(results)
            if type(result) in (list, tuple)
            else tuple(results)
        )

    def _slice(self, tensor: Tensor, axes: tuple[Space, ...]) -> Tensor:
        for dim, axis in enumerate(axes):
            index = indices(axis, self.kept)
            if len(index) < axis.size:
                tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
        return tensor

    def _numbered(self, tensor: Tensor, space: Space | None) -> Tensor:
        """Numbers of kept units as numbers of all units."""
        if space is None or len(units := indices(space, self.kept)) == space.size:
            return tensor
        return torch.from_numpy(units).to(tensor.device)[tensor]

    def _spread(self, tensor: Tensor, axes: tuple[Space, ...]) -> Tensor:
        for dim, axis in enumerate(axes):
            index = indices(axis, self.kept)
            if len(index) < axis.size:
                shape = list(tensor.shape)
                shape[dim] = axis.size
                full = tensor.new_zeros(shape)
                tensor = full.index_copy_(dim, torch.from_numpy(index).to(tensor.device), tensor)
        return tensor


def _adapted(name: str, args: tuple[Any, ...], record: OpRecord, kept: Mapping[Atom, Any]) -> tuple[Any, ...]:
    """The integer arguments of a normalization on fewer units."""
    if name in ("layer_norm", "rms_norm"):
        n = len(args[1])
        return (args[0], list(args[0].shape[-n:]), *args[2:])
    if name == "group_norm":
        channels, positions = record.arguments[0][1], record.arguments[0][2:]
        within = [s for s in record.renormalized if all(s is not p for p in positions)]
        each = len(indices(within[0], kept)) if within else channels.size // int(args[1])
        return (args[0], args[0].shape[1] // each, *args[2:])
    return args
