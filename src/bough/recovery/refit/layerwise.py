"""Layer-by-layer refit: run both models up to a consumer, solve its weight, write it, and continue."""

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
    first_process_object,
    process_count,
    process_rank,
    require_equal_in_processes,
    tapped,
    unfold,
    unfold_output,
)  # fmt: skip
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning import Plan
from bough.recovery.correspondence import folded_factors, kept_units, name_after_cut, select_kept
from bough.recovery.refit.consumers import Consumer, ResidualInput, find_consumers
from bough.recovery.refit.mean_errors import MeanErrors
from bough.recovery.refit.ridge import FOLDS, NormalEquations, Solution
from bough.spaces import Space, indices
from bough.tracing.flow import channel_scale

_FEW_ROWS = 10  # rows per input of a layer, below which the solution may overfit the sample


@dataclass(frozen=True, slots=True)
class RefitOptions:
    """Options of `refit_` that decide what is solved."""

    ridge: float | None
    sites: int
    everything: bool
    skips: bool
    biases_only: bool


@dataclass(frozen=True, slots=True)
class RefittedLayer:
    """Record of a refitted weight.

    Attributes:
        name: of the parameter.
        before, after: E|Y - X W - b|^2 as a share of the variance of Y (of E|Y|^2 if no constant can be added).
        ridge: the strength that was used; None if only the bias was solved for.
        note: a caveat; "" if there is none.
    """

    name: str
    before: float
    after: float
    ridge: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class _WeightState:
    """Sums of a parameter while its consumers are observed; `pending` counts consumers that have not been observed yet."""

    sums: NormalEquations | MeanErrors
    consumers: list[Consumer] = field(default_factory=list)
    pending: int = 0


class LayerwiseRefit:
    """Refit of the model of `small` in place.

    Args:
        dense: graph of the dense model.
        small: graph of the cut model.
        plan: by which it was cut.
        data: calibration data.
        options: of `refit_`.

    Attributes:
        layers: records of the refitted weights.
        skipped: weights that are not refitted, with the reason.
        running_means: buffers of batch norms that took a constant, with their new values.

    Raises:
        PlanError: no weight can be refitted, or the data is empty.
    """

    def __init__(self, dense: Graph, small: Graph, plan: Plan, data: Data, options: RefitOptions) -> None:
        self.dense, self.small, self.plan, self.data, self.options = dense, small, plan, data, options
        self.kept = kept_units(dense, plan)
        search = find_consumers(dense, small, plan, self.kept, options.everything)
        written = {c.name for c in search.consumers if c.name in small.written}
        without = {c.name for c in search.consumers if options.biases_only and not c.shift}
        self.skipped = {
            **search.skipped,
            **dict.fromkeys(sorted(without), "it has no bias of its own that could take a mean"),
            **dict.fromkeys(sorted(written), "forward itself changes this weight"),
        }
        self.layers: list[RefittedLayer] = []
        self.running_means: list[tuple[Tensor, Tensor]] = []
        self.weights: dict[str, _WeightState] = {}
        self._tensors: dict[int, list[Tensor]] = {}  # arguments of each consumer in one run
        begin = first_batches(data, 2)
        self._is_single_batch = len(begin) == 1 and (not data.distributed or process_count() == 1)
        self._locate_weights(search.consumers, begin[0])
        consumers = [c for c in search.consumers if c.name in self.weights]
        if not consumers:
            cause = "No product of an activation and a weight reads what is cut." if plan.kept else "The plan cuts nothing."
            why = "; ".join(f"{n}: {w}" for n, w in list(self.skipped.items())[:5])
            raise PlanError(f"no weight of {type(small.model).__name__} can be refitted. {why or cause}")
        for c in consumers:
            self.weights[c.name].pending += 1
        if data.distributed:
            require_equal_in_processes(
                [(c.name, c.small.op) for c in consumers], "the weights that its data reaches: refit in one process"
            )
        self.stages = self._group_into_stages(consumers)

    def _group_into_stages(self, consumers: Sequence[Consumer]) -> list[list[Consumer]]:
        """Group adjacent consumers of the same input, unless the output of one is added to a value computed from another's."""
        stages: list[list[Consumer]] = []
        for c in consumers:
            first, residual = stages[-1][0] if stages else None, self._residual(c)
            same_input = first is not None and self._input_value(first) == self._input_value(c)
            if first is not None and same_input and (residual is None or residual.small[0] < first.small.op):
                stages[-1].append(c)
            else:
                stages.append([c])
        return stages

    def _input_value(self, c: Consumer) -> int:
        return self.small.ops[c.small.op].inputs[c.small.argument]

    def _locate_weights(self, consumers: Sequence[Consumer], batch: Any) -> None:
        """Run the cut model on a batch and keep the weight that each consumer reads, if it is a view of a parameter."""
        storages = {p.untyped_storage()._cdata for p in self.small.model.parameters()}
        observed = self._tensors

        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            observed[op.index] = [t.detach() for t in tensors]

        with torch.no_grad(), tapped(self.small, [Tap(c.small.op, read) for c in consumers]):
            self.data.run(self.small, batch)
        for c in consumers:
            if c.small.op not in observed:
                self.skipped[c.name] = "the data does not reach it"
                continue
            weight = self._weight(c)
            is_expanded = any(s == 0 and n > 1 for s, n in zip(weight.stride(), weight.shape, strict=True))
            if weight.untyped_storage()._cdata not in storages or is_expanded:
                self.skipped[c.name] = "the weight is computed from a parameter, and not a view of it"
            elif c.name not in self.skipped:
                sums = MeanErrors() if self.options.biases_only else NormalEquations()
                state = self.weights.setdefault(c.name, _WeightState(sums))
                state.consumers.append(c)
                if self._weight(state.consumers[0]).data_ptr() != weight.data_ptr():
                    self.skipped[c.name] = "several ops read parts of it"
        for name in self.weights.keys() & self.skipped.keys():
            del self.weights[name]

    def _weight(self, c: Consumer) -> Tensor:
        """Return the weight as the consumer's operator reads it."""
        return self._tensors[c.small.op][_weight_argument(c.small)]

    def run(self, memory: int) -> None:
        """Refit stage by stage.

        Args:
            memory: bytes that half-finished runs, kept between stages, may take.
        """
        run_memory = sum(g.cost().peak_memory for g in (self.dense, self.small))
        models = (self._staged_dense(), self._staged_small())
        with PairedRuns(models, self.data, int(memory // max(run_memory, 1))) as runs:
            for number, stage in enumerate(self.stages):
                for batch, (dense, small) in enumerate(runs.at_stage(number)):
                    for c in stage:
                        self._accumulate(c, batch, dense, small[stage[0].small.op, False], small)
                used_before = [self._solve(c) for c in stage]
                if any(used_before):
                    runs.restart()

    def _staged_small(self) -> StagedModel:
        """Return the stages of the cut model: it pauses before the first consumer of each."""
        stops = tuple((stage[0].small.op, False) for stage in self.stages)
        needed = {point: i for i, point in enumerate(stops)}
        for i, stage in enumerate(self.stages):
            needed.update({(r.small[0], True): i for c in stage if (r := self._residual(c))})
        return StagedModel(self.small, stops, needed)

    def _staged_dense(self) -> StagedModel:
        """Return the stages of the dense model: it pauses after the last consumer of each."""
        stops = tuple((max(c.dense.op for c in stage), True) for stage in self.stages)
        needed: dict[TapPoint, int] = {}
        for i, stage in enumerate(self.stages):
            for c in stage:
                needed[c.dense.op, True] = i
                if c.routed:
                    needed[c.dense.op, False] = i
                if residual := self._residual(c):
                    needed[residual.dense[0], True] = i
        return StagedModel(self.dense, stops, needed)

    def _residual(self, c: Consumer) -> ResidualInput | None:
        """Return the value to which a consumer's output is added, if its error is to be compensated for."""
        return c.residual if self.options.skips else None

    def _accumulate(self, c: Consumer, batch: int, dense: Observed, x: Sequence[Tensor], small: Observed) -> None:
        """Add a batch to a consumer's sums.

        Args:
            c: the consumer.
            batch: number of the batch.
            dense: tensors observed in the dense run.
            x: the arguments of the operator before which the cut model has paused.
            small: tensors observed in the cut model's run.
        """
        op, dense_op = self.small.ops[c.small.op], self.dense.ops[c.dense.op]
        tensors = list(self._tensors[c.small.op])
        y = self._select(dense[c.dense.op, True][0], dense_op.results[0]) * self._folded_factors(c, dense_op)
        if c.routed:
            tensors = [t if i == _weight_argument(c.small) else dense[c.dense.op, False][i] for i, t in enumerate(tensors)]
            tensors[c.small.argument] = self._select(tensors[c.small.argument], dense_op.arguments[c.dense.argument])
        else:
            tensors[c.small.argument] = x[c.small.argument]
        total = None
        if residual := self._residual(c):
            error, total = self._residual_error(residual, dense, small), self._residual_sum(residual, y, dense)
            y = y + error
        rows = unfold(c.small, op, tensors, self.options.sites).x
        targets = unfold_output(c.small, op, tensors, y, self.options.sites)
        if c.routed and len(rows) > len(self._unfolded_weight(c)):  # some experts were cut
            kept = indices(dense_op.arguments[_weight_argument(c.dense)][0], self.kept).tolist()
            rows, targets = [rows[i] for i in kept], [targets[i] for i in kept]
        if c.constant is not None and not c.shift:  # the constant stays, so the weight has to reproduce the rest
            constant = tensors[c.constant].reshape(len(targets), 1, -1)
            targets = [t - k for t, k in zip(targets, constant, strict=True)]
        sums, weights = self.weights[c.name].sums, None
        if isinstance(sums, MeanErrors):
            sums.add(rows, targets, self._unfolded_weight(c), c.shift)
            return
        if total is not None:
            total_rows = unfold_output(c.small, op, tensors, total, self.options.sites)
            weights = [_inverse_squares(t.double().square().sum(1)) for t in total_rows]
        number = batch * process_count() + process_rank() if self.data.distributed else batch
        fold = 0 if self.options.ridge is not None else None if self._is_single_batch else number % FOLDS
        sums.add(rows, targets, weights, c.shift, fold)

    def _select(self, tensor: Tensor, axes: Sequence[Space]) -> Tensor:
        """Return the kept units of a tensor of the dense run."""
        selected = select_kept(tensor, axes, self.kept)
        assert selected is not None  # `find_consumers` returns no other consumers
        return selected

    def _folded_factors(self, c: Consumer, op: OpRecord) -> Tensor | float:
        """Return the factors that the plan has folded into the weight, one per kept output."""
        scales = [s for s in self.plan.scales if name_after_cut(s.name, self.plan) == c.name]
        return folded_factors(op, scales, self.kept).to(self._weight(c)) if scales else 1.0

    def _residual_error(self, residual: ResidualInput, dense: Observed, small: Observed) -> Tensor | float:
        """Return the difference between the dense model's residual input and the cut model's, before the norm in between."""
        dense_value = self._select(dense[residual.dense[0], True][residual.dense[1]], residual.add.arguments[residual.argument])
        small_value = small[residual.small[0], True][residual.small[1]]
        if dense_value.shape != small_value.shape:
            return 0.0  # the value is broadcast
        if residual.norm is None:
            return dense_value - small_value
        scale = channel_scale(self.small, residual.norm)
        near_zero = scale.abs() <= 1e-3 * scale.abs().max()
        inverse = torch.where(near_zero, 0.0, 1 / torch.where(near_zero, 1.0, scale))
        return (dense_value - small_value) * inverse.view(-1, *(1,) * (small_value.dim() - 2))

    def _residual_sum(self, residual: ResidualInput, y: Tensor, dense: Observed) -> Tensor | None:
        """Return the sum of the dense model's output and residual input, unless a batch norm stands in between.

        Without a batch norm, a later layer normalizes each row of the sum, so the relative error of a row is what matters;
        otherwise a few large rows would dominate the fit.
        """
        dense_value = self._select(dense[residual.dense[0], True][residual.dense[1]], residual.add.arguments[residual.argument])
        return y + dense_value if residual.norm is None and dense_value.shape == y.shape else None

    def _unfolded_weight(self, c: Consumer) -> Tensor:
        """Return the weight as [blocks, d, outputs]."""
        return unfold(c.small, self.small.ops[c.small.op], self._tensors[c.small.op], 1).w

    def _solve(self, c: Consumer) -> bool:
        """Solve and write a weight once all its consumers are observed; return whether runs have used the old one before."""
        state = self.weights[c.name]
        state.pending -= 1
        if state.pending:
            return False
        start = self._unfolded_weight(c)
        by_shift = {use.shift: use for use in state.consumers if use.shift}
        zeros = torch.zeros(len(start), start.shape[-1], dtype=torch.float64, device=start.device)
        shifts = {
            name: zeros if use.constant is None else self._tensors[use.small.op][use.constant].double().reshape(zeros.shape)
            for name, use in by_shift.items()
        }
        del self.weights[c.name]
        if self.data.distributed:
            state.sums.add_over_processes()
        if not state.sums.rows:
            self.skipped[c.name] = "no row of the data reaches it"
            return False
        solution = self._solution(state.sums, start, shifts)
        if solution.ridge is not None:
            self._write_weight(c, solution.weight)
        for name, shift in solution.shifts.items():
            self._write_constant(by_shift[name], shift)
        notes = ["on the dense model's inputs: which rows it sees depends on data"] if c.routed else []
        if solution.ridge is not None and solution.rows < _FEW_ROWS * start.shape[1]:
            few = f"{solution.rows} rows of data for {start.shape[1]} inputs are few"
            notes.append(few if solution.rows else "where no row of data came, it is as it was")
        self.layers.append(RefittedLayer(c.name, solution.before, solution.after, solution.ridge, "; ".join(notes)))
        return len(state.consumers) > 1

    def _solution(self, sums: NormalEquations | MeanErrors, start: Tensor, shifts: dict[str, Tensor]) -> Solution:
        """Return the solution from a weight's sums, the same in all processes."""
        if isinstance(sums, MeanErrors):
            solution = sums.solve(start, shifts)
        else:
            solution = sums.solve(start, shifts, ridge=self.options.ridge)
        if self.data.distributed:  # processors of different kinds may round the same solution differently
            solution = first_process_object(solution.to(torch.device("cpu"))).to(start.device)
        return solution

    def _write_weight(self, c: Consumer, blocks: Tensor) -> None:
        """Write a weight [blocks, d, outputs] to the parameter, by unfolding the positions of its elements."""
        tensor = self._weight(c)
        numbered = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape)
        arguments = [numbered if i == _weight_argument(c.small) else t for i, t in enumerate(self._tensors[c.small.op])]
        flat = torch.empty(tensor.numel(), dtype=torch.float64, device=tensor.device)
        flat[unfold(c.small, self.small.ops[c.small.op], arguments, 1).w.long().flatten()] = blocks.flatten()
        tensor.copy_(flat.view(tensor.shape))

    def _write_constant(self, c: Consumer, constant: Tensor) -> None:
        """Write a constant to the bias, or subtract it from the running mean of the batch norm."""
        if c.constant is not None:
            bias = self._tensors[c.small.op][c.constant]
            bias.copy_(constant.reshape(bias.shape))
        else:
            mean = self.small.tensor(c.shift)
            mean -= constant.flatten()
            self.running_means.append((mean, mean.clone()))


def _inverse_squares(squares: Tensor) -> Tensor:
    """Return weights 1 / squares of rows [N], so that relative errors count.

    A row of zeros, such as padding, has no relative error and gets weight 0. A row that is almost zero gets at most the weight
    of a thousand median rows.
    """
    is_nonzero = squares > 0
    if not is_nonzero.any():
        return torch.zeros_like(squares)
    median = squares[is_nonzero].median()
    return torch.where(is_nonzero, 1 / squares.clamp_min(1e-3 * median), 0.0)


def _weight_argument(axis: InputAxis) -> int:
    """Return the number of the argument that holds the weight."""
    assert axis.weight is not None
    return axis.weight[0]
