"""Passes over data in which only a part of the model's weights is in memory at a time: all batches run stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn

from bough.calibration.batches import batch_size
from bough.calibration.data import Data, Loss, check_sums
from bough.calibration.staged_run import MAX_PAUSED, StagedRun, current_run, is_staged
from bough.calibration.sums import SAMPLES, Sums
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.errors import PlanError, TraceError
from bough.graph import Graph, OpRecord

_WHOLE = (
    "the criterion runs the whole model, for a loss or gradients, and the model is loaded block by block: use a criterion on "
    "activations, such as wanda, flap or block_influence, or load the model and use bough.prune"
)


@dataclass(frozen=True, slots=True, eq=False)
class BlockwiseData(Data):
    """Data for a model whose weights are loaded stage by stage.

    Every batch runs in a thread of its own up to the end of a stage, so that what the next stage needs is kept in memory, and
    the weights of one stage are. Sums are those of a pass batch by batch, bit for bit: each belongs to one stage, and batches
    are added to it in their order.

    Attributes:
        stops: indices of the operators before which a stage ends, ascending; there is one stage more.
        resident: stage -> context in which the weights that its operators read are loaded.
    """

    stops: tuple[int, ...] = ()
    resident: Callable[[int], AbstractContextManager[None]] | None = None

    def __post_init__(self) -> None:
        """Check nothing: the fields are those of a `Data`, which has checked them."""

    def run(self, graph: Graph, batch: Any, model: nn.Module | None = None) -> Any:
        """Return the output of the model for a batch, within a pass.

        Raises:
            PlanError: outside of a pass, as for gradients or a loss, which need all weights at once; or as `Data.run`.
        """
        if not is_staged():
            raise PlanError(_WHOLE)
        return Data.run(self, graph, batch, model)

    def loss(self, graph: Graph, loss: Loss) -> Callable[[nn.Module, Any], Any]:
        """Raise PlanError: a loss needs all weights at once."""
        raise PlanError(_WHOLE)


def blockwise_pass(graph: Graph, data: BlockwiseData, taps: Sequence[Tap], sums: Sums, title: str) -> None:
    """Run the graph's model on all batches, stage by stage, in eval mode and without gradients.

    Args:
        graph: of the model.
        data: calibration data.
        taps: their readers add to `sums`.
        sums: running sums of the pass; the number of samples is added.
        title: of the pass, for messages.

    Raises:
        PlanError: there are no batches, or a sum is not finite at the end.
        TraceError: on this data the model takes another path than the traced one.
    """
    pauses = [Tap(op, partial(_pause, stage)) for stage, op in enumerate(data.stops)]
    with preserve_state(graph.model, graph.written), tapped(graph, [*pauses, *taps]):
        batches = iter(data.batches)
        while some := list(islice(batches, MAX_PAUSED)):
            runs = [StagedRun(graph.model, partial(data.run, graph, batch)) for batch in some]
            try:
                _run_stages(data, runs, title)
            finally:
                for run in runs:
                    run.close()
            for batch in some:
                sums.plus(SAMPLES, float(batch_size(batch)))
    check_sums(data, sums, title)


def _run_stages(data: BlockwiseData, runs: Sequence[StagedRun], title: str) -> None:
    """Advance all runs from stage to stage."""
    assert data.resident is not None
    for stage in range(len(data.stops) + 1):
        with data.resident(stage):
            for run in runs:
                run.advance(stage)
                if not run.is_done and stage == len(data.stops):
                    raise TraceError(f"{title}: the run on data takes another path than the traced one")
                if run.is_done and stage < len(data.stops):
                    raise TraceError(f"{title}: the run on data ended in stage {stage + 1} of {len(data.stops) + 1}")


def _pause(stage: int, op: OpRecord, tensors: Sequence[Tensor]) -> None:
    """End the stage of the current run."""
    run = current_run()
    if run.stage == stage:
        run.pause()


def stages_of(stops: Sequence[int], count: int) -> Iterator[range]:
    """Yield the operators of each stage.

    Args:
        stops: as of `BlockwiseData`.
        count: number of operators.
    """
    yield from map(range, (0, *stops), (*stops, count))
