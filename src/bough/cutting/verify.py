"""`verify`: is the cut model the masked original?"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calls import Call, as_calls
from bough.cutting.check import other_weights
from bough.cutting.cut import copied, masked, zero_cut
from bough.cutting.drawn import draw, perturb
from bough.cutting.names import original_names
from bough.cutting.randomness import randomness
from bough.cutting.reference import Reference, collected, compared
from bough.cutting.slicing import Slicer, plain
from bough.cutting.verification import DrawnCheck, OutputError, Outputs, Verification, distance, errors_of
from bough.errors import PlanError
from bough.graph import Beside, RecordedRun, model_tensor
from bough.planning.plan import Plan
from bough.torch_internals import TorchDispatchMode
from bough.tracing.capture.attribute_numbers import substituted
from bough.tracing.capture.caches import fresh_caches
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.siblings import run_beside
from bough.tracing.capture.tree import Returned, state_names, tensors_within
from bough.tracing.capture.wrapped import eagerly, unwrap

_NOISE_MARGIN, _NOISE_RUNS = 3.0, 4
_PRECISION = re.compile(
    r"not implemented for '|float64|complex128|\bDouble\b|\(double\)|(?i:\bd-?types?\b|scalar type|data type)"
)  # of a message that says that an op lacks a precision


def verify(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, *, dtype: torch.dtype | None = torch.float64
) -> Verification:
    """Run the masked original and the cut model in eval mode on the same inputs, and compare all tensors they return.

    Each tensor of the output is judged by its own scale: it may differ by two thirds of the digits of the precision, or by
    what rounding moves it (measured by changing the weights by their last bit). Integers and booleans must be the same. If
    the output does not depend on what was cut, as with a head of zeros, or a parameter of zeros may hide a branch, then
    the cut model's weights are compared with the plan's slices too, and both models once more with weights drawn at random.
    All of it is done on copies, one after the other; the generators of random numbers stay as they were.

    Modules that no call reaches, but a sibling of which is reached, are run on the inputs of the sibling in both models and
    compared, too; `Verification.unreached` names the other parts that no call reaches.

    Args:
        model: the original, which stays as it is.
        small: the cut model, which stays as it is.
        plan: the plan between them.
        example_inputs: as for `trace`. Of several calls all are compared, each from the state that the models have before
            the first one; calls that return no tensor are compared by the numbers that they return.
        dtype: the floating dtype to convert weights and inputs to for the comparison; None compares as they are. If an op
            of the model has no such precision, the comparison is made as they are, and `Verification.fallback` says so.

    Raises:
        PlanError: `dtype` is no floating `torch.dtype`, or the models do not return the same number and shapes of tensors.
        TraceError: the masked original can not be run on these inputs.

    Example:
        >>> import torch, bough
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(3, 4)
        >>> graph = bough.trace(net, x)
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> bough.verify(net, bough.cut(net, plan), plan, x).equal
        True
    """
    check_arguments(verify, locals())
    if dtype is not None and not dtype.is_floating_point:
        raise PlanError(
            f"verify(dtype={dtype!r}) is no floating torch.dtype: give dtype=torch.float64, or None to compare as it is"
        )
    # torch imports this at the first op inside a dispatch mode, and keeps the frames that it is imported from, copies and all
    importlib.import_module("torch._dynamo")
    try:
        return _Comparison(model, small, plan, example_inputs, dtype).result()
    except Exception as error:
        missing = missing_precision(error)
        if dtype is None or not missing:
            raise
    return _Comparison(model, small, plan, example_inputs, None, f"it does not run in {_name(dtype)} ({missing})").result()


def expected_outputs(
    model: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype | None = torch.float64
) -> dict[str, Tensor]:
    """Return the outputs, by path, that `verify` expects of a model cut by `plan` in the first call."""
    expected, _ = _Comparison(model, model, plan, example_inputs, dtype).expected()
    first, _ = next(iter(expected))
    return {path: t for (call, path), t in expected.items() if call == first}


def missing_precision(error: BaseException | None) -> str:
    """Return the line of an error, or of its cause, that says that an op lacks a precision; "" if none does."""
    while error is not None:
        first = _first_line(error)
        if isinstance(error, (RuntimeError, TypeError)) and _PRECISION.search(first):
            return first
        error = error.__cause__ or error.__context__
    return ""


class _Comparison:
    """One comparison of a model with the one cut from it, in one precision."""

    def __init__(
        self, model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype | None, fallback: str = ""
    ) -> None:
        self.model, self.small, self.plan, self.dtype = model, small, plan, dtype
        self.example = self.calls = as_calls(example_inputs)
        self.written: frozenset[str] = frozenset()
        self.fallback, self.slicer = fallback, Slicer(plan)
        self.beside: tuple[RecordedRun, ...] = ()  # of the last reference
        self.unreached: tuple[str, ...] = ()
        floats = [p.dtype for p in model.parameters() if p.is_floating_point()] or [torch.get_default_dtype()]
        self.precision = dtype or max(floats, key=lambda d: torch.finfo(d).eps)

    def result(self) -> Verification:
        """Compare the models one after the other, so that there is one converted copy at a time."""
        plan = self.plan
        expected, rounding = self.expected()
        names, parts = self.names(), self.unreached
        beside = {pair.name: n for pair, n in zip(self._pairs(), names[len(self.calls) :], strict=True)}
        if not expected:
            raise PlanError("there is nothing to compare: the masked original returns no tensor")
        candidate = _Candidate(self)
        actual = candidate.outputs()
        reached = {call for call, _ in actual} | set(names[: len(self.calls)])  # the cut model may not reach some sibling
        expected = {key: t for key, t in expected.items() if key[0] in reached}
        unreached = tuple(name for name in parts if beside.get(name) not in reached)
        errors, cause, again = candidate.judged(expected, actual), "", None
        if not all(e.equal for e in errors):
            cause = candidate.randomness() or other_weights(self.model, plan)
        elif why := candidate.unseen(actual, errors):
            del candidate  # the next one takes its memory
            again = self._drawn_check(why)
        cut = tuple(n for n, (k, t) in plan.groups.items() if k < t)
        return Verification(
            max_error=max(e.error for e in errors), scale=max(e.scale for e in errors), dtype=_name(self.precision),
            exact_groups=tuple(n for n in cut if n not in plan.renormalizing),
            renormalizing_groups=tuple(n for n in cut if n in plan.renormalizing),
            outputs=errors, rounding=rounding, fallback=self.fallback, drawn=again, cause=cause, calls=len(self.calls),
            only_run=tuple(n for n in names if n in reached and all(n != e.call for e in errors)), unreached=unreached,
        )  # fmt: skip

    def converted(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, in the precision of the comparison if it holds floats."""
        if self.dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.clone()
        return tensor.to(self.dtype.to_complex() if tensor.is_complex() else self.dtype, copy=True)

    def given(self) -> list[Call]:
        """Return the calls with copies of the inputs in the precision of the comparison."""
        return [c.given(*with_tensors((c.args, c.kwargs), self.converted)) for c in self.calls]

    def names(self) -> list[str]:
        """Return what the report calls each call, "" for a lone one, and each run of a module beside its sibling."""
        given = (*self.example, *self.calls[len(self.example) :])  # as they were given, and those that `trace` made of them
        calls = [f"call {i} of {len(given)}, {c}" for i, c in enumerate(given, 1)] if len(given) > 1 else [""]
        return calls + [f"{p.name} on the inputs of {p.sibling}" for p in self._pairs()]

    def _pairs(self) -> list[Beside]:
        """Return the modules that run beside siblings, in order."""
        return [pair for recorded in self.beside for pair in recorded.beside]

    def named(self, outputs: Iterable[Mapping[str, Tensor]]) -> Outputs:
        """Return the outputs of the calls by call and path."""
        return {(n, path): t for n, found in zip(self.names(), outputs, strict=True) for path, t in found.items()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run models as the comparison wants them run."""
        with torch.no_grad(), _Precisely(self.dtype), eagerly():
            yield

    def expected(self) -> tuple[Outputs, float]:
        """Return the outputs of the masked original, and how far the rounding of folded factors moves them."""
        full = unwrap(masked(self.model, self.plan, self._rounded)).eval()
        reference = self._reference(full)
        expected = self._outputs(reference)
        if self.dtype is None or not self.plan.scales:
            return expected, 0.0
        original = {name: t for name, t, _, _ in model_tensors(unwrap(self.model))}
        for name, tensor, _, _ in model_tensors(full):
            if any(s.name == name for s in self.plan.scales):
                plain(tensor).copy_(zero_cut(name, self.converted(plain(original[name])), self.plan))
        exact = self._outputs(reference)
        return expected, max(distance(a, b) for a, b in zip(exact.values(), expected.values(), strict=True))

    def _reference(self, full: nn.Module) -> Reference:
        with self.running():
            reference = Reference(full, self.plan, self.given())
        self.calls = (*self.calls, *reference.graph.calls[len(self.calls) :])  # the first ones as they were given, for messages
        self.written = reference.graph.written
        return reference

    def _outputs(self, reference: Reference) -> Outputs:
        with self.running():
            found = reference.outputs()
        self.beside, self.unreached = reference.beside, tuple(u.name for u in reference.graph.unreached)
        return self.named(found)

    def _rounded(self, name: str, tensor: Tensor, parameter: bool) -> Tensor:
        """Return a tensor of the original with the rounding error of the factors folded into it, but without the factors."""
        scales = [s for s in self.plan.scales if s.name == name and self.dtype is not None]
        value = self.converted(self.slicer.scaled(name, tensor) if scales else tensor)
        for s in scales:
            index = torch.tensor(s.indices, device=value.device)
            value.index_copy_(s.dim, index, value.index_select(s.dim, index) / s.factor)
        return value

    def _drawn_check(self, why: str) -> DrawnCheck:
        """Compare the weights with the plan's slices, and both models' outputs with drawn weights."""
        different = self._different()
        if different:
            return DrawnCheck(why, (), different)
        try:
            expected = self._outputs(self._reference(unwrap(masked(self.model, self.plan, self._drawn)).eval()))
            candidate = _Candidate(self)
            candidate.draw()
            actual = candidate.outputs()
            errors = candidate.judged(expected, actual)
            return DrawnCheck(why, errors, (), depends=candidate.depends(actual, errors))
        except Exception as error:  # drawn weights may lead a model where its own never do
            return DrawnCheck(why, (), (), problem=f"{type(error).__name__}: {_first_line(error)}")

    def _drawn(self, name: str, tensor: Tensor, parameter: bool) -> Tensor:
        return draw(name, self.converted(tensor)) if parameter else self.converted(tensor)

    def _different(self) -> tuple[str, ...]:
        """Return the names of the cut model's parameters and saved buffers that are not the plan's slices."""
        names = original_names(unwrap(self.model), self.plan)
        found = []
        for name, tensor, _, saved in model_tensors(unwrap(self.small)):
            if saved and name in names and tensor.is_floating_point():
                full = plain(model_tensor(unwrap(self.model), names[name]))
                if not _same(self.slicer(names[name], full, fresh=True), plain(tensor)):
                    found.append(name)
        return tuple(found)


class _Candidate:
    """A copy of the cut model in the precision of a comparison."""

    def __init__(self, comparison: _Comparison) -> None:
        self.comparison = comparison
        copy, _ = copied(comparison.small, lambda name, tensor, parameter: comparison.converted(tensor))
        self.model = unwrap(copy).eval()
        self.names = original_names(unwrap(comparison.model), comparison.plan)

    def outputs(self) -> Outputs:
        """Run the copy, and return its outputs by path."""
        with unchanged_rng():
            return self._run()

    def judged(self, expected: Outputs, actual: Outputs) -> tuple[OutputError, ...]:
        """Compare outputs, by what rounding moves them where two thirds of the digits do not agree.

        What moves without any change, by numbers drawn outside torch, say, is no rounding.
        """
        precision = self.comparison.precision
        errors = errors_of(expected, actual, precision)
        if all(e.equal for e in errors) or not all(e.equal for e in errors_of(actual, self.outputs(), precision)):
            return errors
        return errors_of(expected, actual, precision, self._noise(actual, expected))

    def randomness(self) -> str:
        """Say where the copy draws random numbers; "" if it does not."""
        with unchanged_rng():
            return randomness(self.model, self._run)

    def unseen(self, actual: Outputs, errors: tuple[OutputError, ...]) -> str:
        """Say what an error in the weights would not be seen by in the outputs; "" if all of it would be seen."""
        zero = next(
            (n for n, t in self._parameters() if "bias" not in n.rpartition(".")[2] and t.numel() and not t.any()), None
        )
        if not any(t.is_floating_point() or t.is_complex() for t in actual.values()):
            return "the output holds integers alone, which show little of what was cut"
        if not self.depends(actual, errors):
            return "the output does not depend on what was cut"
        return "" if zero is None else f"{zero} is zero, which may hide a branch from the output"

    def depends(self, actual: Outputs, errors: tuple[OutputError, ...]) -> bool:
        """Change what is left of the tensors that were cut, and return whether an output changes by more than rounding."""
        plan, tensors = self.comparison.plan, list(self._parameters())
        cut = [t for n, t in tensors if self.names.get(n, n) in plan.kept] or [t for _, t in tensors]
        perturb(cut, 0.25, seed=0)
        changed = self.outputs()
        return any(
            key not in changed or distance(a, changed[key]) > e.tolerance
            for (key, a), e in zip(actual.items(), errors, strict=True)
        )

    def draw(self) -> None:
        """Put the plan's slices of drawn weights in the place of the copy's parameters.

        Raises:
            PlanError: a parameter has a name that the original does not have.
        """
        comparison = self.comparison
        for name, tensor in self._parameters():
            if name not in self.names:
                raise PlanError(f"the original has no parameter for {name}")
            full = comparison.converted(plain(model_tensor(unwrap(comparison.model), self.names[name])))
            tensor.copy_(comparison.slicer(self.names[name], draw(self.names[name], full), fresh=False))

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, plain(t)) for n, t, parameter, _ in model_tensors(self.model) if parameter)

    def _noise(self, actual: Outputs, expected: Outputs) -> dict[tuple[str, str], float]:
        """Return how far a change of the weights and inputs by their last bit moves each output, times a margin."""
        moved = dict.fromkeys(expected, 0.0)
        size = torch.finfo(self.comparison.precision).eps
        for run in range(_NOISE_RUNS):
            perturb([t for _, t in self._parameters()], size, seed=run)
            with unchanged_rng():
                outputs = self._run(partial(perturb, size=size, seed=run))
            for path in expected.keys() & outputs.keys():
                moved[path] = max(moved[path], _NOISE_MARGIN * distance(actual[path], outputs[path]))
        return {path: noise if isfinite(noise) else 0.0 for path, noise in moved.items()}

    def _run(self, change: Callable[[Iterable[Tensor]], object] | None = None) -> Outputs:
        """Make the calls on inputs that `change` has changed in place; what a call leaves on modules is undone after it."""
        calls = self.comparison.given()
        if change is not None:
            for call in calls:
                change(tensors_within((call.args, call.kwargs)))
        found = [self._made(call) for call in calls]
        for recorded in self.comparison.beside:
            outputs: dict[str, Returned] = {}
            again = self.comparison.given()[recorded.call]
            if change is not None:
                change(tensors_within((again.args, again.kwargs)))
            self._made(again, partial(run_beside, self.model, recorded.beside, collected(outputs)))
            found += [compared(outputs[p.name]) if p.name in outputs else {} for p in recorded.beside]  # on another path: none
        return self.comparison.named(found)

    def _made(self, call: Call, prepare: Callable[[], None] | None = None) -> dict[str, Tensor]:
        """Make a call, before which `prepare` may change what modules hold, and return its outputs by path."""
        method = call.bound(self.model)
        with substituted(self.model, lambda path, n: n), fresh_caches(self.model), self._unwritten():
            if prepare is not None:
                prepare()
            with self.comparison.running():
                returned = Returned.of(method(*call.args, **call.kwargs), state_names(self.model, method))
            return compared(returned)

    @contextmanager
    def _unwritten(self) -> Iterator[None]:
        """Put back the values of tensors that the model holds, parameters that `forward` changes included."""
        written = self.comparison.written
        named = [(n, t, parameter) for n, t, parameter, _ in model_tensors(self.model)]
        before = [(t, t.detach(), plain(t).clone()) for n, t, p in named if not p or self.names.get(n, n) in written]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, data, value in before:
                    if tensor.layout != torch.strided:
                        continue
                    if tensor.data_ptr() != data.data_ptr():
                        tensor.data = data
                    if not _same(value, plain(tensor)):
                        plain(tensor).copy_(value)


class _Precisely(TorchDispatchMode):
    """Floats that a model asks for by dtype are made in the compared dtype, where that is the wider one: many compute
    rotary angles or a softmax in float32, whose last bits depend on how wide the tensor is."""

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("dtype")
        if self.dtype is not None and asked is not None and (asked.is_floating_point or asked.is_complex):
            kwargs = {**kwargs, "dtype": torch.promote_types(asked, self.dtype)}
        return func(*args, **kwargs)


def _same(expected: Tensor, actual: Tensor) -> bool:
    if expected.shape != actual.shape:
        return False
    expected = expected.to(actual.device, actual.dtype)
    return bool(((expected == actual) | ((expected != expected) & (actual != actual))).all())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
