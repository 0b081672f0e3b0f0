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
from bough.contrasting.measuring import Evaluate, Measurement, Recovery
from bough.contrasting.variants import Maker
from bough.errors import BoughError, ComparisonError, PlanError
from bough.measuring import device_name
from bough.recovery import Training
from bough.sparsity import METHODS
from bough.sparsity.kernels import check_layout
from bough.sparsity.patterns import Pattern
from bough.storage import exclusive
from bough.tracing import trace
from bough.tracing.capture.tree import tensors_within
from bough.tracing.selection import Selection

SEMI_STRUCTURED = "2:4"  # the pattern that tensor cores compute


def contrast(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Evaluate,
    *,
    keeps: Sequence[float] = (0.5,),
    data: Data | Iterable[Any] | None = None,
    recover: Callable[[nn.Module], object] | None = None,
    train: Any = None,
    training: Training | None = None,
    loss: Callable[..., Any] | None = None,
    seeds: Sequence[int] = (0,),
    kernels: Sequence[str] | None = None,
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
    there is data. No variant is trained unless `train` or `recover` is given, which all variants get alike, for as many epochs;
    zeros stay zero meanwhile.

    Args:
        model: stays as it is.
        example_inputs: as for `trace`; latency is that of one such pass.
        evaluate: model -> a number.
        keeps: shares of the parameters that are to remain, each above 0 and below 1.
        data: batches, as for `score`; they may be gone through again.
        recover: trains a variant in place, in place of `train`; random numbers are seeded.
        train, training, loss: as for `finetune`: data with labels, the options (`seed` is taken from `seeds`), and the loss.
        seeds: each variant is trained once per seed, from the same start; the metric after is the mean, and its spread the
            standard deviation.
        kernels: layouts of `use_sparse_kernels` to time; "csr" and "bsr" on the CPU, and "semi_structured" on an NVIDIA GPU
            for 2:4, unless given.
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
        ComparisonError: an option out of range, kernels that the model's device does not have, or the folder holds another run.
        TrainingError: `train` is no data.
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
    recovery = Recovery.of(recover, train, training, loss, seeds)
    layouts = _kernels(kernels, model, pattern)
    from rich.progress import track  # a third of the time that importing bough would take

    maker = Maker(model, example_inputs, batches, ignore, round_to, chosen, pattern)
    graph = trace(model, example_inputs, ignore=ignore)  # fails now, and not row by row, if a name leads nowhere
    settings = {
        "pattern": pattern, "round_to": str(round_to), "repeats": str(repeats), "clock": clock,
        "recover": recovery.name, "seeds": str(recovery.seeds), "kernels": ", ".join(layouts), "device": device_name(),
    }  # fmt: skip
    first = graph.calls[0]
    identity = identity_of(graph, list(tensors_within((first.args, first.kwargs))), settings)
    with exclusive(None if folder is None else Path(folder), ComparisonError):
        kept = ContrastFolder(None if folder is None else Path(folder), identity)
        measure = Measurement(maker, evaluate, recovery, layouts, repeats, clock)
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
    return Contrast(rows, device_name(), tolerance, lower_is_better, _absent(pattern, layouts))


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


def _kernels(chosen: Sequence[str] | None, model: nn.Module, pattern: str) -> tuple[str, ...]:
    """Return the layouts of sparse kernels to time: by default those that torch has for the model's device.

    Raises:
        ComparisonError: a layout that is unknown, that the device has no kernels for, or that can not hold the pattern.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if chosen is None:
        return ("csr", "bsr") if device.type == "cpu" else ("semi_structured",) if pattern == SEMI_STRUCTURED else ()
    if "semi_structured" in chosen and pattern != SEMI_STRUCTURED:
        raise ComparisonError(f"kernels={list(chosen)}: semi_structured is for pattern='2:4', and the pattern is {pattern!r}")
    for layout in chosen:
        try:
            check_layout(layout, device)
        except PlanError as error:
            raise ComparisonError(f"kernels={list(chosen)}: {error}") from None
    return tuple(dict.fromkeys(chosen))


def _absent(pattern: str, kernels: Sequence[str]) -> dict[str, str]:
    """Return the runtimes that were not measured, with the reason."""
    absent = {
        "sparse engines": "absent: engines for unstructured sparsity on CPUs (such as DeepSparse, which is not maintained) are "
        "no part of torch"
    }
    if pattern != SEMI_STRUCTURED:
        absent[f"{pattern} on tensor cores"] = f"absent: no kernel in torch computes {pattern}"
    elif "semi_structured" not in kernels:
        why = "absent: torch's 2:4 kernels run on NVIDIA GPUs in half precision only: see use_sparse_kernels"
        absent[f"{pattern} on tensor cores"] = why
    return absent
