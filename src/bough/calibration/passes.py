"""One pass of a model over calibration data with taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bough.calibration.blockwise import BlockwiseData, blockwise_pass
from bough.calibration.data import Data
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.graph import Graph


def tapped_pass(graph: Graph, data: Data, taps: Sequence[Tap], sums: Sums, title: str) -> None:
    """Run the graph's model on the batches that `sums` does not cover yet, in eval mode and without gradients.

    Args:
        graph: of the model, which stays as it is.
        data: calibration data.
        taps: their readers add to `sums`.
        sums: running sums of the pass; the number of samples is added.
        title: of the pass, see `Data.stream`.

    Raises:
        PlanError: as `Data.stream`.
        TraceError: on this data the model takes another path than the traced one.
    """
    if isinstance(data, BlockwiseData):
        blockwise_pass(graph, data, taps, sums, title)
        return
    with torch.no_grad(), preserve_state(graph.model, graph.written), tapped(graph, taps):
        for batch in data.stream(graph, sums, title):
            data.run(graph, batch)
