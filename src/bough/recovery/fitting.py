"""From consumer to consumer in the order of the run: read, solve, write, go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bough.calibration import (
    Data,
    InputAxis,
    Observed,
    PairedRuns,
    StagedModel,
    Tap,
    TapPoint,
    first_batches,
    tapped,
    unfold,
    unfold_output,
)
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning.plan import Plan
from bough.recovery.consumers import Consumer, Skip, consumers
from bough.recovery.least_squares import QUARTERS, Sums
from bough.recovery.pairing import folded, kept_units, renamed, select
from bough.spaces import Space, indices
from bough.tracing.flow import channel_scale

_FEW = 10  # rows for each input of a layer, below which a fit may follow the sample more than the model


@dataclass(frozen=True, slots=True)
class Options:
    """See `refit_`."""

    ridge: float | None
    sites: int
    everything: bool
    skips: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A refitted weight: E|Y - X W - b|^2 before and after, as a share of the variance of Y (of E|Y|^2 without a constant)."""

    name: str
    before: float
    after: float
    ridge: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Weight:
    """What is known of a parameter while its consumers are gone through."""

    sums: Sums = field(default_factory=Sums)
    consumers: list[Consumer] = field(default_factory=list)
    left: int = 0  # of them, those that have not been read yet


class Fitting:
    """Refits the model of `small`; `layers`, `skipped` and `means` (buffers and what they become) tell what was done."""

    def __init__(self, dense: Graph, small: Graph, plan: Plan, data: Data, options: Options) -> None:
        self.dense, self.small, self.plan, self.data, self.options = dense, small, plan, data, options
        self.kept = kept_units(dense, plan)
        found = consumers(dense, small, plan, self.kept, options.everything)
        changing = {c.name for c in found.found if c.name in small.written}
        self.skipped = {**found.skipped, **dict.fromkeys(sorted(changing), "forward itself changes this weight")}
        self.layers: list[Layer] = []
        self.means: list[tuple[Tensor, Tensor]] = []
        self.weights: dict[str, _Weight] = {}
        self._tensors: dict[int, list[Tensor]] = {}  # what each op was seen with in one run
        begin = first_batches(data, 2)
        self._batch, self._alone = begin[0], len(begin) == 1
        self._look(found.found)
        fit = [c for c in found.found if c.name in self.weights]
        if not fit:
            cause = "No product of an activation and a weight reads what is cut." if plan.kept else "The plan cuts nothing."
            why = "; ".join(f"{n}: {w}" for n, w in list(self.skipped.items())[:5])
            raise PlanError(f"no weight of {type(small.model).__name__} can be refitted. {why or cause}")
        for c in fit:
            self.weights[c.name].left += 1
        self.stages = self._stages(fit)

    def _stages(self, fit: Sequence[Consumer]) -> list[list[Consumer]]:
        """Consumers of one input are fitted together, unless what comes of one is added to what comes of another."""
        stages: list[list[Consumer]] = []
        for c in fit:
            first, skip = stages[-1][0] if stages else None, self._skip(c)
            same = first is not None and self._input(first) == self._input(c)
            if first is not None and same and (skip is None or skip.small[0] < first.small.op):
                stages[-1].append(c)
            else:
                stages.append([c])
        return stages

    def _input(self, c: Consumer) -> int:
        return self.small.ops[c.small.op].inputs[c.small.argument]

    def _look(self, found: Sequence[Consumer]) -> None:
        """Runs the cut model on one batch to see each weight as its op does: a view of a parameter can be written."""
        own = {p.untyped_storage()._cdata for p in self.small.model.parameters()}
        seen = self._tensors

        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            seen[op.index] = [t.detach() for t in tensors]

        with torch.no_grad(), tapped(self.small, [Tap(c.small.op, read) for c in found]):
            self.data.run(self.small, self._batch)
        for c in found:
            if c.small.op not in seen:
                self.skipped[c.name] = "the data does not reach it"
                continue
            weight = self._tensor(c)
            stretched = any(s == 0 and n > 1 for s, n in zip(weight.stride(), weight.shape, strict=True))
            if weight.untyped_storage()._cdata not in own or stretched:
                self.skipped[c.name] = "the weight is computed from a parameter, and not a view of it"
            elif c.name not in self.skipped:
                known = self.weights.setdefault(c.name, _Weight())
                known.consumers.append(c)
                if self._tensor(known.consumers[0]).data_ptr() != weight.data_ptr():
                    self.skipped[c.name] = "several ops read parts of it"
        for name in self.weights.keys() & self.skipped.keys():
            del self.weights[name]

    def _tensor(self, c: Consumer) -> Tensor:
        """The weight, as its op sees it."""
        return self._tensors[c.small.op][_weight(c.small)]

    def run(self, memory: int) -> None:
        """Goes from stage to stage. `memory`: bytes that batches may hold which wait for the next one."""
        each = sum(g.cost().peak_memory for g in (self.dense, self.small))
        with PairedRuns((self._dense_route(), self._small_route()), self.data, int(memory // max(each, 1))) as runs:
            for number, stage in enumerate(self.stages):
                for batch, (big, little) in enumerate(runs.at_stage(number)):
                    for c in stage:
                        self._read(c, batch, big, little[stage[0].small.op, False], little)
                again = [self._solve(c) for c in stage]
                if any(again):
                    runs.restart()

    def _small_route(self) -> StagedModel:
        """The cut model stops before the first consumer that reads what a stage fits."""
        stops = tuple((stage[0].small.op, False) for stage in self.stages)
        needed = {place: i for i, place in enumerate(stops)}
        for i, stage in enumerate(self.stages):
            needed.update({(s.small[0], True): i for c in stage if (s := self._skip(c))})
        return StagedModel(self.small, stops, needed)

    def _dense_route(self) -> StagedModel:
        """The dense one after the last of them."""
        stops = tuple((max(c.dense.op for c in stage), True) for stage in self.stages)
        needed: dict[TapPoint, int] = {}
        for i, stage in enumerate(self.stages):
            for c in stage:
                needed[c.dense.op, True] = i
                if c.routed:
                    needed[c.dense.op, False] = i
                if skip := self._skip(c):
                    needed[skip.dense[0], True] = i
        return StagedModel(self.dense, stops, needed)

    def _skip(self, c: Consumer) -> Skip | None:
        return c.skip if self.options.skips else None

    def _read(self, c: Consumer, batch: int, big: Observed, x: Sequence[Tensor], little: Observed) -> None:
        """Adds a batch, by its number, to a consumer's sums. `x`: the arguments of the op that the cut model stands at."""
        op, theirs = self.small.ops[c.small.op], self.dense.ops[c.dense.op]
        tensors = list(self._tensors[c.small.op])
        y = self._kept(big[c.dense.op, True][0], theirs.results[0]) * self._factors(c, theirs)
        if c.routed:
            tensors = [t if i == _weight(c.small) else big[c.dense.op, False][i] for i, t in enumerate(tensors)]
            tensors[c.small.argument] = self._kept(tensors[c.small.argument], theirs.arguments[c.dense.argument])
        else:
            tensors[c.small.argument] = x[c.small.argument]
        stream = None
        if skip := self._skip(c):
            error, stream = self._error_of(skip, big, little), self._stream(skip, y, big)
            y = y + error
        rows = unfold(c.small, op, tensors, self.options.sites).x
        targets = unfold_output(c.small, op, tensors, y, self.options.sites)
        if c.routed and len(rows) > len(self._blocks(c)):  # experts
            stay = indices(theirs.arguments[c.dense.weight[0]][0], self.kept).tolist()  # type: ignore[index]
            rows, targets = [rows[i] for i in stay], [targets[i] for i in stay]
        if c.constant is not None and not c.shift:  # it stays, and the rest is what the weight is for
            constant = tensors[c.constant].reshape(len(targets), 1, -1)
            targets = [t - k for t, k in zip(targets, constant, strict=True)]
        weights = None
        if stream is not None:
            each = unfold_output(c.small, op, tensors, stream, self.options.sites)
            weights = [_weights(e.double().square().sum(1)) for e in each]
        quarter = 0 if self.options.ridge is not None else None if self._alone else batch % QUARTERS
        self.weights[c.name].sums.add(rows, targets, weights, c.shift, quarter)

    def _kept(self, tensor: Tensor, axes: Sequence[Space]) -> Tensor:
        found = select(tensor, axes, self.kept)
        assert found is not None  # `consumers` takes no others
        return found

    def _factors(self, c: Consumer, op: OpRecord) -> Tensor | float:
        """What the plan has folded into the weight, for each output that is kept."""
        scales = [s for s in self.plan.scales if renamed(s.name, self.plan) == c.name]
        return folded(op, scales, self.kept).to(self._tensor(c)) if scales else 1.0

    def _error_of(self, skip: Skip, big: Observed, little: Observed) -> Tensor | float:
        """How far what the outputs are added to is from the dense model's, in front of the norm between."""
        theirs = self._kept(big[skip.dense[0], True][skip.dense[1]], skip.add.arguments[skip.argument])
        ours = little[skip.small[0], True][skip.small[1]]
        if theirs.shape != ours.shape:
            return 0.0  # broadcast
        if skip.norm is None:
            return theirs - ours
        scale = channel_scale(self.small, skip.norm)
        near_zero = scale.abs() <= 1e-3 * scale.abs().max()
        inverse = torch.where(near_zero, 0.0, 1 / torch.where(near_zero, 1.0, scale))
        return (theirs - ours) * inverse.view(-1, *(1,) * (ours.dim() - 2))

    def _stream(self, skip: Skip, y: Tensor, big: Observed) -> Tensor | None:
        """What the dense model's outputs make of what they are added to. Where no batch norm does, a norm over each row
        follows sooner or later, so that rows count by the share of them that is wrong; a few large ones would count alone."""
        theirs = self._kept(big[skip.dense[0], True][skip.dense[1]], skip.add.arguments[skip.argument])
        return y + theirs if skip.norm is None and theirs.shape == y.shape else None

    def _blocks(self, c: Consumer) -> Tensor:
        return unfold(c.small, self.small.ops[c.small.op], self._tensors[c.small.op], 1).w

    def _solve(self, c: Consumer) -> bool:
        """Once all that read a weight are read: solves for it and writes it. Whether runs have used the old one before."""
        weight = self.weights[c.name]
        weight.left -= 1
        if weight.left:
            return False
        start = self._blocks(c)
        shifted = {use.shift: use for use in weight.consumers if use.shift}
        none = torch.zeros(len(start), start.shape[-1], dtype=torch.float64, device=start.device)
        shifts = {
            name: none if use.constant is None else self._tensors[use.small.op][use.constant].double().reshape(none.shape)
            for name, use in shifted.items()
        }
        del self.weights[c.name]
        if not weight.sums.rows:
            self.skipped[c.name] = "no row of the data reaches it"
            return False
        solution = weight.sums.solve(start, shifts, ridge=self.options.ridge)
        self._write(c, solution.weight)
        for name, shift in solution.shifts.items():
            self._shift(shifted[name], shift)
        notes = ["on the dense model's inputs: which rows it sees depends on data"] if c.routed else []
        if solution.rows < _FEW * start.shape[1]:
            few = f"{solution.rows} rows of data for {start.shape[1]} inputs are few"
            notes.append(few if solution.rows else "where no row of data came, it is as it was")
        self.layers.append(Layer(c.name, solution.before, solution.after, solution.ridge, "; ".join(notes)))
        return len(weight.consumers) > 1

    def _write(self, c: Consumer, blocks: Tensor) -> None:
        """Puts a weight of the form that `unfold` gives it into the parameter."""
        tensor = self._tensor(c)
        numbered = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape)
        places = [numbered if i == _weight(c.small) else t for i, t in enumerate(self._tensors[c.small.op])]
        flat = torch.empty(tensor.numel(), dtype=torch.float64, device=tensor.device)
        flat[unfold(c.small, self.small.ops[c.small.op], places, 1).w.long().flatten()] = blocks.flatten()
        tensor.copy_(flat.view(tensor.shape))

    def _shift(self, c: Consumer, constant: Tensor) -> None:
        """Puts a constant where it can be added."""
        if c.constant is not None:
            bias = self._tensors[c.small.op][c.constant]
            bias.copy_(constant.reshape(bias.shape))
        else:
            mean = self.small.tensor(c.shift)
            mean -= constant.flatten()
            self.means.append((mean, mean.clone()))


def _weights(squares: Tensor) -> Tensor:
    """1 / squares, for rows that count by the share of them that is wrong. One of zeros, such as padding, has no share; one
    that is next to nothing beside the others does not count for more than a thousand of them."""
    there = squares > 0
    if not there.any():
        return torch.zeros_like(squares)
    usual = squares[there].median()
    return torch.where(there, 1 / squares.clamp_min(1e-3 * usual), 0.0)


def _weight(reading: InputAxis) -> int:
    assert reading.weight is not None
    return reading.weight[0]
