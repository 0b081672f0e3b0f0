"""The search space whose predicted costs are corrected by what was measured of the candidates so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bough.latency import LatencyLine
from bough.searching.assessment import MeasuredCosts
from bough.searching.space import SearchSpace

_NEAREST = 5  # candidates that count: those whose measured costs are nearest to the bound
_LEAST_RATIO = 0.01  # of a measured cost to the predicted one
_AIM = 0.98  # of a bound on latency, is what corrected candidates are planned for: measurements scatter about the line


@dataclass(frozen=True, slots=True)
class MeasuredCandidate:
    """What is known of a candidate's costs.

    Attributes:
        left_out: the layers that it leaves out.
        predicted, measured: costs by field of `Cost`.
    """

    left_out: tuple[str, ...]
    predicted: Mapping[str, float]
    measured: Mapping[str, float]


class Corrections:
    """Corrects a search space by the candidates whose measured costs are nearest to their bounds.

    Latency is predicted by a line through these candidates and the dense model (see `latency.line`). Of other costs, the bounds
    on the predictions are divided by the median ratio of measured to predicted.

    Args:
        space: with the costs as predicted.
        checks: the costs that are measured, and their bounds.
    """

    def __init__(self, space: SearchSpace, checks: Sequence[MeasuredCosts]) -> None:
        self._space = space
        self._limits = {name: limit for check in checks for name, limit in check.limits.items()}
        dense = {name: value for check in checks for name, value in check.dense.items()}
        self._dense = MeasuredCandidate((), space.pricing.original.to_dict(), dense)
        self._known: dict[tuple[object, ...], SearchSpace] = {}

    @property
    def names(self) -> list[str]:
        """The costs that are measured."""
        return list(self._limits)

    def space(self, candidates: Sequence[MeasuredCandidate]) -> SearchSpace:
        """Return the corrected space; the same object for the same corrections.

        Where the line says that no candidate meets the bound on latency, the ratio of the nearest candidate corrects in its
        place; where no candidate meets that either, nothing does.
        """
        ratios = {name: self._ratio(name, candidates) for name in self._limits if name != "latency"}
        others = {name: self._limits[name] / ratio for name, ratio in ratios.items() if ratio is not None}
        for line, latency in self._lines(candidates):
            limits = {**others, **latency}
            if not limits:
                break
            key = (line, *sorted(limits.items()))
            if key not in self._known:
                found = self._space.corrected(line, limits)
                if found is None:
                    continue
                self._known[key] = found
            return self._known[key]
        return self._space

    def _ratio(self, name: str, candidates: Sequence[MeasuredCandidate]) -> float | None:
        """Return a cost as measured over its prediction, in percent steps: the median of the candidates nearest the bound."""
        near = self._nearest(name, candidates)
        if not near:
            return None
        return max(round(float(np.median([c.measured[name] / c.predicted[name] for c in near])), 2), _LEAST_RATIO)

    def _lines(self, candidates: Sequence[MeasuredCandidate]) -> list[tuple[LatencyLine | None, dict[str, float]]]:
        """Return (line, limit on latency by it) to correct by, the better first; (None, {}) where latency is not measured."""
        if "latency" not in self._limits:
            return [(None, {})]
        near, limit = self._nearest("latency", candidates), self._limits["latency"]
        if not near:
            return [(self._line([self._dense]), {"latency": limit})]
        lines = self._line([self._dense, *near]), self._line(near[:1])
        return [(line, {"latency": _AIM * limit}) for line in lines]

    def _line(self, candidates: Sequence[MeasuredCandidate]) -> LatencyLine:
        ops = [self._space.pricing.ops(c.left_out) for c in candidates]
        predicted = [c.predicted["latency"] for c in candidates]
        return LatencyLine.fitted(ops, predicted, [c.measured["latency"] for c in candidates]).rounded()

    def _nearest(self, name: str, candidates: Sequence[MeasuredCandidate]) -> list[MeasuredCandidate]:
        known = [c for c in candidates if name in c.measured]
        return sorted(known, key=lambda c: abs(c.measured[name] - self._limits[name]))[:_NEAREST]
