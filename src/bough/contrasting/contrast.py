"""`contrast`: structured pruning, unstructured and N:M sparsity of one model side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, require_reiterable
from bough.comparing.folder import identity_of
from bough.contrasting.contrast_files import ContrastFolder
from bough.contrasting.contrast_rows import DENSE, ContrastRow
from bough.contrasting.contrasted import Contrast
from bough.contrasting.variants import Made, Maker, nonzero_macs
from bough.errors import BoughError, ComparisonError
from bough.measuring import device_name, latencies
from bough.sparsity import METHODS, file_sizes, use_sparse_kernels
from bough.sparsity.patterns import Pattern
from bough.storage import exclusive
from bough.tracing import trace
from bough.tracing.capture.tree import tensors_within
from bough.tracing.selection import Selection

Evaluate = Callable[[nn.Module], float]
Recover = Callable[[nn.Module], object]


def contrast(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Evaluate,
    *,
    keeps: Sequence[float] = (0.5,),
    data: Data | Iterable[Any] | None = None,
    recover: Recover | None = None,
    methods: Sequence[str] | None = None,
    pattern: str = "2:4",
    round_to: int = 8,
    tolerance: float = 1.0,
    lower_is_better: bool = False,
    ignore: Selection = (),
    repeats: int = 30,
    clock: str = "wall",
    folder: str | Path | None = None,
    progress: bool = False,
) -> Contrast:
    """Measure a model dense, structurally pruned, unstructured sparse and N:M sparse, at equal numbers of non-zeros.

    Each variant is timed turn by turn with the dense model: on dense kernels, where zeros take as long as other numbers, and
    sparse ones also on torch's CSR and block-sparse kernels. Files are written and measured. Structured pruning refits where
    there is data, so no variant is trained unless `recover` is given, which all variants get alike.

    Args:
        model: stays as it is.
        example_inputs: as for `trace`; latency is that of one such pass.
        evaluate: model -> a number.
        keeps: shares of the parameters that are to remain, each above 0 and below 1.
        data: batches, as for `score`; they may be gone through again.
        recover: trains a variant in place; masks hold meanwhile.
        methods: of `sparsify`, for unstructured sparsity; the last one is also that of patterns. "magnitude" without data,
            "magnitude", "wanda" and "sparsegpt" with it, unless given.
        pattern: N:M.
        round_to: structured widths are multiples of this.
        tolerance: by how much the metric may be worse than the dense model's in the comparison at equal accuracy.
        lower_is_better: of the metric.
        ignore: as for `trace` and `sparsify`.
        repeats: timed passes of each variant.
        clock: "wall", or "cpu" for one thread on a machine that does other work too.
        folder: where rows are kept; the same call again makes only those that are not there.
        progress: show a progress bar.

    Raises:
        ArgumentError: an argument of another type.
        ComparisonError: an option out of range, or the folder holds another run.
        TraceError: the model could not be run.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> x = torch.randn(64, 8)
        >>> error = lambda small: float((small(x) - net(x)).square().mean().detach())
        >>> result = bough.contrast(net, x, error, lower_is_better=True, repeats=2)
        >>> [row.variant for row in result.rows]
        ['dense', '2:4 magnitude', 'structured', 'magnitude']
    """
    check_arguments(contrast, locals())
    Pattern.of(pattern)
    batches = None if data is None else as_data(data, "contrast")
    usual = ("magnitude",) if batches is None else ("magnitude", "wanda", "sparsegpt")
    chosen = usual if methods is None else tuple(methods)
    _check(keeps, chosen, batches, repeats, round_to)
    from rich.progress import track  # a third of the time that importing bough would take

    maker = Maker(model, example_inputs, batches, ignore, round_to, chosen, pattern)
    graph = trace(model, example_inputs, ignore=ignore)  # fails now, and not row by row, if a name leads nowhere
    settings = {
        "pattern": pattern, "round_to": str(round_to), "repeats": str(repeats), "clock": clock,
        "recover": getattr(recover, "__qualname__", str(recover)), "device": device_name(),
    }  # fmt: skip
    first = graph.calls[0]
    identity = identity_of(graph, list(tensors_within((first.args, first.kwargs))), settings)
    with exclusive(None if folder is None else Path(folder), ComparisonError):
        kept = ContrastFolder(None if folder is None else Path(folder), identity)
        measure = _Measure(maker, evaluate, recover, repeats, clock)
        if (DENSE, None) not in kept.rows:
            kept.add(measure.row(ContrastRow(DENSE), maker.dense()))
        variants = list(maker.variants(keeps))
        missing = [v for v in variants if (v.name, v.keep) not in kept.rows]
        for variant in track(missing, "contrast") if progress else missing:
            row = ContrastRow(variant.name, variant.keep)
            try:
                kept.add(measure.row(row, variant.make()))
            except BoughError as error:
                kept.add(replace(row, error=f"{type(error).__name__}: {error}"))
    rows = (kept.rows[DENSE, None], *(kept.rows[v.name, v.keep] for v in variants))
    return Contrast(rows, device_name(), tolerance, lower_is_better, _absent(pattern))


def _check(keeps: Sequence[float], methods: Sequence[str], data: Data | None, repeats: int, round_to: int) -> None:
    """Raise ComparisonError for options that are out of range or do not fit each other."""
    if not keeps or not all(0 < k < 1 for k in keeps):
        raise ComparisonError(f"keeps={list(keeps)}: give shares of the parameters above 0 and below 1, such as keeps=[0.5]")
    if not methods:
        raise ComparisonError("methods=[]: give at least one of 'magnitude', 'wanda' and 'sparsegpt'")
    unknown = [m for m in methods if m not in METHODS or m == "snip"]
    if unknown:
        raise ComparisonError(f"methods={list(methods)}: {unknown[0]!r} is none of 'magnitude', 'wanda' and 'sparsegpt'")
    if data is None and set(methods) - {"magnitude"}:
        raise ComparisonError(f"methods={list(methods)} needs data: batches, such as data=loader")
    if data is not None:
        require_reiterable(data)
    if repeats < 1 or round_to < 1:
        raise ComparisonError(f"repeats={repeats}, round_to={round_to}: both must be at least 1")


class _Measure:
    """Measures a variant."""

    def __init__(self, maker: Maker, evaluate: Evaluate, recover: Recover | None, repeats: int, clock: str) -> None:
        self.maker, self.evaluate, self.recover, self.repeats, self.clock = maker, evaluate, recover, repeats, clock

    def row(self, row: ContrastRow, made: Made) -> ContrastRow:
        """Return the row of a variant: its metric, then recovery, then all that is measured of the plain model."""
        before, after = self._metric(made.model), None
        if self.recover is not None and row.variant != DENSE:
            self.recover(made.model)
            after = self._metric(made.model)
        plain = made.plain().eval()
        macs, computed, memory = nonzero_macs(plain, self.maker.example_inputs)
        parameters = list(plain.parameters())
        seconds, speedup, notes = self._timed(row, plain)
        return replace(
            row, params=sum(p.numel() for p in parameters), nonzeros=sum(int(p.count_nonzero()) for p in parameters),
            macs=macs, nonzero_macs=computed, peak_memory=memory, files=_files(plain), seconds=seconds, speedup=speedup,
            before=before, after=after, notes=notes,
        )  # fmt: skip

    def _metric(self, model: nn.Module) -> float:
        value = self.evaluate(model)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = float(value.detach())
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ComparisonError(f"evaluate(model) must return a number, and returned {value!r}")
        return float(value)

    def _timed(self, row: ContrastRow, plain: nn.Module) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
        """Return seconds and speed-up by runtime, and why a runtime is left out."""
        runs, notes = {"eager": plain}, {}
        if row.variant not in (DENSE, "structured"):
            for layout in ("csr", "bsr"):
                try:
                    kernels = use_sparse_kernels(plain, layout)
                except BoughError as error:
                    notes[layout] = str(error)
                    continue
                runs[layout] = kernels.model
                if kernels.left_out:
                    dense, every = len(kernels.left_out), len(kernels.left_out) + len(kernels.layers)
                    notes[layout] = f"{dense} of {every} layers with zeros stay on dense kernels"
        models = {DENSE: self.maker.model, **runs}
        if row.variant == DENSE:
            models = {DENSE: self.maker.model}
        times = latencies(models, self.maker.example_inputs, repeats=self.repeats, clock=self.clock)
        seconds = {n: times[DENSE if row.variant == DENSE else n].median for n in runs}
        return seconds, {n: times[DENSE].median / s for n, s in seconds.items()}, notes


def _files(model: nn.Module) -> dict[str, int]:
    """Return the bytes of the dense file, of it gzipped, and of the smallest sparse files."""
    sizes = file_sizes(model)
    sparse = {n: s for n, s in sizes.items() if n != "dense"}
    return {
        "dense": sizes["dense"]["bytes"], "dense_gzip": sizes["dense"]["gzip"],
        "sparse": min(s["bytes"] for s in sparse.values()), "sparse_gzip": min(s["gzip"] for s in sparse.values()),
        **{n: s["bytes"] for n, s in sparse.items()},
    }  # fmt: skip


def _absent(pattern: str) -> dict[str, str]:
    """Return the runtimes that were not measured, with the reason."""
    if pattern != "2:4":
        why = f"no kernel in torch computes {pattern}"
    else:
        why = "torch's 2:4 kernels run on NVIDIA GPUs in half precision only: see use_sparse_kernels"
    unmaintained = "not measured: engines for unstructured sparsity on CPUs are no part of torch (DeepSparse is not maintained)"
    return {f"{pattern} on tensor cores": why, "sparse engines": unmaintained}
