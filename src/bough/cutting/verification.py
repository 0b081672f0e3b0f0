"""What `verify` found: values that print, compare and go into JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from bough.errors import PlanError, VerificationError

_SHOWN = 5  # unreached parts that a line lists


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one tensor of the output is from the reference.

    Attributes:
        path: where the tensor is in what the model returns, such as "['logits']"; "" for a lone tensor.
        error: largest absolute difference.
        scale: largest absolute value of the reference.
        tolerance: the error up to which the tensors are equal; 0 for integers and booleans.
        call: the call that returned it, such as "call 2 of 3, encode(float32[2, 8])"; "" if there is one call.
    """

    path: str
    error: float
    scale: float
    tolerance: float
    call: str = ""

    @property
    def equal(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        of_call = {"call": self.call} if self.call else {}
        return {**of_call, "path": self.path, "error": self.error, "scale": self.scale, "tolerance": self.tolerance}

    @property
    def place(self) -> str:
        """Where it is, for messages: " at output['logits'] of call 2 of 3, ..."; "" for the lone tensor of the one call."""
        return _place(self.call, self.path)


@dataclass(frozen=True, slots=True)
class DrawnCheck:
    """A second comparison, with weights drawn at random, of what the output does not show with the model's own weights.

    Attributes:
        why: what the first comparison could not show.
        outputs: the errors with drawn weights in both models; empty if that comparison could not be made.
        different: parameters and buffers of the cut model that are not the plan's slices of the original's.
        depends: whether the output depends on what was cut with the drawn weights.
        problem: why the comparison with drawn weights could not be made; "" if it was made.
    """

    why: str
    outputs: tuple[OutputError, ...]
    different: tuple[str, ...]
    depends: bool = True
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether the cut model's weights are the plan's slices, and the outputs with drawn weights are equal."""
        return not self.different and all(o.equal for o in self.outputs)

    def __str__(self) -> str:
        if self.different:
            more = f" and {len(self.different) - 1} more" if len(self.different) > 1 else ""
            return f"{self.why}, and {self.different[0]}{more} of the cut model is not the plan's slice of the original"
        if self.problem:
            return f"{self.why}; the cut model's weights are the plan's slices, but drawn weights do not run: {self.problem}"
        shown = f"with drawn weights in both the largest error is {max(o.error for o in self.outputs):.2e}"
        if not self.depends:
            shown += ", where the output does not depend on it either: only the weights could be compared, and are the plan's"
        return f"{self.why}; {shown}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "why": self.why, "outputs": [o.to_dict() for o in self.outputs], "different": list(self.different),
            "depends": self.depends, "problem": self.problem, "equal": self.equal,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the cut model is from the masked original.

    Attributes:
        max_error: largest absolute difference over all outputs.
        scale: largest absolute value in the outputs of the masked original.
        dtype: the precision of the comparison, such as "float64".
        exact_groups: the cut groups that were compared with plain zeros.
        renormalizing_groups: the cut groups over which a statistic runs, which the masked original took over kept units.
        outputs: the errors of the tensors of the output, each with the tolerance by which it is judged.
        rounding: largest change of an output because a factor that the plan folds into weights (`plan.scales`) is rounded
            there to the weights' precision. It is no part of `max_error`: the masked original has the same rounded weights.
        fallback: why the comparison was not made in the precision asked for; "" if it was.
        drawn: a second comparison with drawn weights, of what the output does not show with the model's own weights.
        cause: why the models differ, where that was found, such as random numbers in `forward` or an original with other
            weights than the plan was made from; "" otherwise.
        calls: the number of calls that were compared.
        only_run: calls that return no tensor and no number, of which nothing was compared: both models make them.
        unreached: modules and tensors that no call reached, of which nothing was compared.
    """

    max_error: float
    scale: float
    dtype: str
    exact_groups: tuple[str, ...]
    renormalizing_groups: tuple[str, ...]
    outputs: tuple[OutputError, ...] = ()
    rounding: float = 0.0
    fallback: str = ""
    drawn: DrawnCheck | None = None
    cause: str = ""
    calls: int = 1
    only_run: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether each output is within rounding of the compared precision, and so is what was compared besides."""
        return bool(self.outputs) and all(o.equal for o in self.outputs) and (self.drawn is None or self.drawn.equal)

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "NOT equal"
        compared = f"{self.dtype}, as {self.fallback}" if self.fallback else self.dtype
        compared += f"; {self.calls} calls" if self.calls > 1 else ""
        compared += f"; {len(self.exact_groups)} exact groups"
        if self.renormalizing_groups:
            compared += f", {len(self.renormalizing_groups)} renormalizing ones against statistics over kept units"
        wrong = [o for o in self.outputs if not o.equal]
        place = wrong[0].place if wrong else ""
        parts = [f"masked original and cut model are {verdict}: largest error {self.max_error:.2e}{place} ({compared})"]
        if self.rounding > max((o.tolerance for o in self.outputs), default=0.0):
            parts.append(f"rounding of the factors folded into weights, apart from that: {self.rounding:.2e}")
        if self.drawn is not None:
            parts.append(str(self.drawn))
        if self.cause:
            parts.append(self.cause)
        parts += [f"{call} returns nothing to compare: it was only run" for call in self.only_run]
        if self.unreached:
            more = f" and {len(self.unreached) - _SHOWN} more" if len(self.unreached) > _SHOWN else ""
            parts.append(f"not compared, as no call reaches it: {', '.join(self.unreached[:_SHOWN])}{more}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "max_error": self.max_error, "scale": self.scale, "dtype": self.dtype, "equal": self.equal,
            "exact_groups": list(self.exact_groups), "renormalizing_groups": list(self.renormalizing_groups),
            "outputs": [o.to_dict() for o in self.outputs], "rounding": self.rounding, "fallback": self.fallback,
            "drawn": None if self.drawn is None else self.drawn.to_dict(), "cause": self.cause, "calls": self.calls,
            "only_run": list(self.only_run), "unreached": list(self.unreached),
        }  # fmt: skip


class OnMismatch(StrEnum):
    """What is done where a cut model differs from the masked original."""

    RAISE = "raise"
    RETURN = "return"


def check_on_mismatch(on_mismatch: str) -> None:
    """Raise a PlanError unless `on_mismatch` is "raise" or "return"."""
    if on_mismatch not in list(OnMismatch):
        raise PlanError(f"on_mismatch={on_mismatch!r} is unknown: use 'raise' or 'return'")


def require_equal(report: Verification, result: Any, on_mismatch: str) -> None:
    """Raise if a cut does not verify, unless the caller insists on it.

    Args:
        report: what `verify` found.
        result: what the caller would have returned; attached to the error.
        on_mismatch: "raise", or "return" to accept the cut all the same.

    Raises:
        VerificationError: the models are not equal.
    """
    if on_mismatch == OnMismatch.RAISE and not report.equal:
        raise VerificationError(
            f"{report}; the result is attached to this error as `result`, and on_mismatch='return' returns it all the same",
            result,
        )


Outputs = dict[tuple[str, str], Tensor]
"""The tensors that calls return, by (call, path in what it returns); the call is "" if there is one."""


def relative_tolerance(*dtypes: torch.dtype) -> float:
    """Return the relative error up to which values are equal: of the coarsest of some dtypes, two thirds of the digits.

    Example:
        >>> import torch
        >>> f"{relative_tolerance(torch.float64):.1e} {relative_tolerance(torch.float64, torch.bfloat16):.1e}"
        '3.7e-11 3.9e-02'
    """
    return float(max(torch.finfo(d).eps for d in dtypes) ** (2 / 3))


def errors_of(
    expected: Outputs, actual: Outputs, dtype: torch.dtype, noise: dict[tuple[str, str], float] | None = None
) -> tuple[OutputError, ...]:
    """Compare two models' outputs tensor by tensor, in the order in which the outputs hold them.

    Args:
        expected, actual: the outputs, by call and path.
        dtype: the precision in which the models ran.
        noise: how far rounding moves each output (by call and path); the tolerance is at least that.

    Raises:
        PlanError: a call's outputs are not as many, or not of the same shapes.
    """
    for call in dict.fromkeys(call for call, _ in expected):
        before, after = (sum(c == call for c, _ in outputs) for outputs in (expected, actual))
        if before != after:
            made = f"in {call} " if call else ""
            raise PlanError(f"the cut model {made}returns {after} tensors, the original {before}")
    found = []
    for ((call, path), a), b in zip(expected.items(), actual.values(), strict=True):
        if a.shape != b.shape:
            place = f"{path} of {call}" if call else path
            raise PlanError(f"output{place} has shape {list(b.shape)} after the cut, and {list(a.shape)} before")
        scale, floating = largest(a), a.is_floating_point() or a.is_complex()
        known = (noise or {}).get((call, path), 0.0)
        tolerance = max(relative_tolerance(dtype, a.dtype) * scale, known) if floating else 0.0
        found.append(OutputError(path, distance(a, b), scale, tolerance, call))
    return tuple(found)


def _place(call: str, path: str) -> str:
    if not call:
        return f" at output{path}" if path else ""
    return f" at output{path} of {call}"


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two tensors; equal infinities are equal, and two NaN in the same place.

    Tensors of nothing but NaN are infinitely far apart: they show nothing. So are tensors of different shapes, such as
    `nonzero` gives for other values.
    """
    if a.shape != b.shape:
        return float("inf")
    a, b = _values(a), _values(b.to(a.device))
    if not a.numel():
        return 0.0
    if (a != a).all():
        return float("inf")
    same = (a == b) | ((a != a) & (b != b))
    apart = torch.where(same, torch.zeros_like(a.abs()), (a - b).abs())
    return float(apart.nan_to_num(float("inf"), float("inf")).max())


def largest(a: Tensor) -> float:
    """Return the largest finite absolute value in a tensor; 0 if there is none."""
    values = _values(a).abs()
    return float(torch.where(values.isfinite(), values, 0).max()) if a.numel() else 0.0


def _values(tensor: Tensor) -> Tensor:
    """Return a tensor's values densely, in double precision."""
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)
