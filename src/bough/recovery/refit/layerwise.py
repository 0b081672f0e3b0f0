"""Layer-by-layer refit: run both models up to a consumer, solve its weight, write it, and continue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bough.calibration import (
    Data,
    InputAxis,
    Observed,
    PairedRuns,
    Sums,
    Tap,
    first_batches,
    first_process_object,
    process_count,
    process_rank,
    require_equal_in_processes,
    tapped_pass,
    unfold,
    unfold_output,
)  # fmt: skip
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.planning import Plan
from bough.recovery.correspondence import kept_units
from bough.recovery.refit.consumers import Consumer, ResidualInput, find_consumers
from bough.recovery.refit.mean_errors import MeanErrors
from bough.recovery.refit.parameter_views import ParameterView, view_of
from bough.recovery.refit.records import RefitOptions, RefittedLayer
from bough.recovery.refit.ridge import FOLDS, NormalEquations, Solution
from bough.recovery.refit.stages import BlockEnd, Stage, blocks_of_stages, residual_of, staged_dense, staged_small
from bough.recovery.refit.targets import Targets, inverse_squares
from bough.spaces import indices

_FEW_ROWS = 10  # rows per input of a layer, below which the solution may overfit the sample


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
        ends: of the blocks in which both models are loaded, but for the last one; none if both are loaded as a whole.
        probe: the first batch, as data for a pass through the cut model; made from `data` unless given.

    Attributes:
        blocks: the stages of each block.
        layers: records of the refitted weights.
        skipped: weights that are not refitted, with the reason.
        running_means: buffers of batch norms that took a constant, with their new values.

    Raises:
        PlanError: no weight can be refitted, or the data is empty.
    """

    def __init__(
        self, dense: Graph, small: Graph, plan: Plan, data: Data, options: RefitOptions, ends: Sequence[BlockEnd] = (),
        probe: Data | None = None,
    ) -> None:  # fmt: skip
        self.dense, self.small, self.plan, self.data, self.options = dense, small, plan, data, options
        self.kept = kept_units(dense, plan)
        self.targets = Targets(dense, small, plan, self.kept)
        search = find_consumers(dense, small, plan, self.kept, options.everything)
        written = {c.name for c in search.consumers if c.name in small.written}
        without = {c.name for c in search.consumers if options.biases_only and not c.shift}
        self.skipped = {
            **search.skipped,
            **dict.fromkeys(sorted(without), "it has no bias of its own that could take a mean"),
            **dict.fromkeys(sorted(written), "forward itself changes this weight"),
            **(_used_several_times(search.consumers) if ends else {}),
        }
        self.layers: list[RefittedLayer] = []
        self.running_means: list[tuple[Tensor, Tensor]] = []
        self.weights: dict[str, _WeightState] = {}
        self._arguments: dict[int, list[Tensor | ParameterView]] = {}  # of each consumer in one run
        begin = first_batches(data, 2)
        self._is_single_batch = len(begin) == 1 and (not data.distributed or process_count() == 1)
        self._locate_weights(search.consumers, Data(begin[:1], data.forward) if probe is None else probe)
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
        self.blocks = blocks_of_stages(consumers, ends, small, options.skips)

    def _locate_weights(self, consumers: Sequence[Consumer], probe: Data) -> None:
        """Run the cut model on a batch and keep the weight that each consumer reads, if it is a view of a parameter."""
        names = {c.small.op: c.name for c in consumers}

        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            candidates = [self.small.tensor(n) for n in dict.fromkeys((names[op.index], *op.states)) if n]
            self._arguments[op.index] = [view_of(t, candidates) or t.detach() for t in tensors]

        tapped_pass(self.small, probe, [Tap(c.small.op, read) for c in consumers], Sums(), "refit")
        for c in consumers:
            if c.small.op not in self._arguments:
                self.skipped[c.name] = "the data does not reach it"
                continue
            arguments = self._arguments[c.small.op]
            arguments[c.small.argument] = _without_memory(arguments[c.small.argument])
            weight = arguments[_weight_argument(c.small)]
            if not isinstance(weight, ParameterView) or weight.is_expanded:
                self.skipped[c.name] = "the weight is computed from a parameter, and not a view of it"
            elif c.name not in self.skipped:
                sums = MeanErrors() if self.options.biases_only else NormalEquations()
                state = self.weights.setdefault(c.name, _WeightState(sums))
                state.consumers.append(c)
                first = self._arguments[state.consumers[0].small.op][_weight_argument(state.consumers[0].small)]
                if not isinstance(first, ParameterView) or first.offset != weight.offset:
                    self.skipped[c.name] = "several ops read parts of it"
        for name in self.weights.keys() & self.skipped.keys():
            del self.weights[name]

    def _tensors(self, c: Consumer) -> list[Tensor]:
        """Return the arguments of a consumer's operator, with its weights as they are now."""
        return [a.tensor if isinstance(a, ParameterView) else a for a in self._arguments[c.small.op]]

    def run(self, memory: int) -> None:
        """Refit all blocks of models that are loaded as a whole.

        Args:
            memory: bytes that half-finished runs, kept between stages, may take.
        """
        run_memory = sum(g.cost().peak_memory for g in (self.dense, self.small))
        with self.runs(int(memory // max(run_memory, 1))) as runs:
            for block in range(len(self.blocks)):
                self.solve_block(runs, block)

    def runs(self, max_paused: int) -> PairedRuns:
        """Return runs of both models, to be entered; see `PairedRuns`."""
        stages = [stage for block in self.blocks for stage in block]
        models = (f(g, stages, self.options.skips) for f, g in ((staged_dense, self.dense), (staged_small, self.small)))
        return PairedRuns(tuple(models), self.data, max_paused)  # type: ignore[arg-type]

    def solve_block(self, runs: PairedRuns, block: int) -> None:
        """Refit the weights of a block, and advance the runs to its end."""
        for number, stage in self._numbered(block):
            for batch, (dense, small) in enumerate(runs.at_stage(number)):
                for c in stage.consumers:
                    self._accumulate(c, batch, dense, small[stage.consumers[0].small.op, False], small)
            used_before = [self._solve(c) for c in stage.consumers]
            if any(used_before):
                runs.restart()

    def pass_block(self, runs: PairedRuns, block: int, layers: Sequence[RefittedLayer], skipped: Mapping[str, str]) -> None:
        """Advance the runs to the end of a block whose weights were refitted before.

        Args:
            runs: of both models.
            block: number of the block.
            layers, skipped: what was recorded of the block.
        """
        self.layers.extend(layers)
        self.skipped.update(skipped)
        for number, stage in self._numbered(block):
            if not stage.consumers:
                for _ in runs.at_stage(number):
                    pass

    def _numbered(self, block: int) -> list[tuple[int, Stage]]:
        """Return the stages of a block with their numbers among all stages."""
        return list(enumerate(self.blocks[block], sum(map(len, self.blocks[:block]))))

    def _residual(self, c: Consumer) -> ResidualInput | None:
        return residual_of(c, self.options.skips)

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
        tensors = self._tensors(c)
        y = self.targets.outputs(c, dense, tensors[_weight_argument(c.small)])
        if c.routed:
            tensors = [t if i == _weight_argument(c.small) else dense[c.dense.op, False][i] for i, t in enumerate(tensors)]
            tensors[c.small.argument] = self.targets.select(tensors[c.small.argument], dense_op.arguments[c.dense.argument])
        else:
            tensors[c.small.argument] = x[c.small.argument]
        total = None
        if residual := self._residual(c):
            error, total = self.targets.residual_error(residual, dense, small), self.targets.residual_sum(residual, y, dense)
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
            weights = [inverse_squares(t.double().square().sum(1)) for t in total_rows]
        number = batch * process_count() + process_rank() if self.data.distributed else batch
        fold = 0 if self.options.ridge is not None else None if self._is_single_batch else number % FOLDS
        sums.add(rows, targets, weights, c.shift, fold)

    def _unfolded_weight(self, c: Consumer) -> Tensor:
        """Return the weight as [blocks, d, outputs]."""
        return unfold(c.small, self.small.ops[c.small.op], self._tensors(c), 1).w

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
            name: zeros if use.constant is None else self._tensors(use)[use.constant].double().reshape(zeros.shape)
            for name, use in by_shift.items()
        }
        del self.weights[c.name]
        if self.data.distributed:
            state.sums.add_over_processes()
        if not state.sums.rows:
            self.skipped[c.name] = "no row of the data reaches it"
            return False
        solution = self._solution(state.sums, start, shifts)
        inputs, is_shared = start.shape[1], len(state.consumers) > 1
        del state  # the sums take the most memory
        if solution.ridge is not None:
            self._write_weight(c, solution.weight)
        for name, shift in solution.shifts.items():
            self._write_constant(by_shift[name], shift)
        notes = ["on the dense model's inputs: which rows it sees depends on data"] if c.routed else []
        if solution.ridge is not None and solution.rows < _FEW_ROWS * inputs:
            few = f"{solution.rows} rows of data for {inputs} inputs are few"
            notes.append(few if solution.rows else "where no row of data came, it is as it was")
        self.layers.append(RefittedLayer(c.name, solution.before, solution.after, solution.ridge, "; ".join(notes)))
        return is_shared

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
        """Write a weight [blocks, d, outputs] to the parameter; if it is no view of it, by unfolding positions of elements."""
        tensor, view = self._tensors(c)[_weight_argument(c.small)], self._unfolded_weight(c)
        if view.untyped_storage()._cdata == tensor.untyped_storage()._cdata and view.numel() == tensor.numel():
            view.copy_(blocks)
            return
        numbered = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape)
        arguments = [numbered if i == _weight_argument(c.small) else t for i, t in enumerate(self._tensors(c))]
        flat = torch.empty(tensor.numel(), dtype=torch.float64, device=tensor.device)
        flat[unfold(c.small, self.small.ops[c.small.op], arguments, 1).w.long().flatten()] = blocks.flatten()
        tensor.copy_(flat.view(tensor.shape))

    def _write_constant(self, c: Consumer, constant: Tensor) -> None:
        """Write a constant to the bias, or subtract it from the running mean of the batch norm."""
        if c.constant is not None:
            bias = self._tensors(c)[c.constant]
            bias.copy_(constant.reshape(bias.shape))
        else:
            mean = self.small.tensor(c.shift)
            mean -= constant.flatten()
            self.running_means.append((mean, mean.clone()))


def _used_several_times(consumers: Sequence[Consumer]) -> dict[str, str]:
    """Return the weights that several operators read, with the reason why models that are loaded block by block keep them."""
    count = Counter(c.name for c in consumers)
    return {n: "several operators read it, and the models are loaded block by block" for n, k in count.items() if k > 1}


def _without_memory(argument: Tensor | ParameterView) -> Tensor:
    """Return zeros in the shape of an activation, with the memory of one element."""
    like = argument.tensor if isinstance(argument, ParameterView) else argument
    return like.new_zeros(()).expand(like.shape)


def _weight_argument(axis: InputAxis) -> int:
    """Return the number of the argument that holds the weight."""
    assert axis.weight is not None
    return axis.weight[0]
