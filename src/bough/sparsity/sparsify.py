"""`sparsify`: zero single weights, unstructured or in an N:M pattern, and keep them at zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calibration import Data, Loss, as_data, require_reiterable
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.graph import Graph
from bough.planning import uncut_plan
from bough.sparsity.attached_masks import attach_masks_, attached_masks
from bough.sparsity.densities import allocation_named
from bough.sparsity.patterns import Pattern
from bough.sparsity.permutation import Permuted, permute_channels_
from bough.sparsity.reconstruction import obs_scores, reconstruct_
from bough.sparsity.saliency import magnitudes, snip_scores, wanda_scores
from bough.sparsity.selected import selected_weights
from bough.sparsity.selection import keep_highest
from bough.sparsity.sparsified import SparseLayer, Sparsified
from bough.sparsity.weight_matrices import WeightMatrix, labels, masks_from
from bough.tracing import trace
from bough.tracing.capture.wrapped import traceable
from bough.tracing.selection import Selection, as_names

METHODS = ("magnitude", "snip", "wanda", "sparsegpt")
_ON_DATA = ("snip", "wanda", "sparsegpt")


@dataclass(frozen=True, slots=True)
class _Options:
    """What decides which elements stay."""

    sparsity: float
    pattern: Pattern | None
    method: str
    allocation: str
    data: Data | None
    loss: Loss | None
    damping: float
    sites: int


def sparsify(
    model: nn.Module,
    example_inputs: Any,
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    method: str = "magnitude",
    allocation: str | None = None,
    data: Data | Iterable[Any] | None = None,
    loss: Loss | None = None,
    ignore: Selection = (),
    only: Selection | None = None,
    permute: bool = False,
    damping: float = 0.01,
    sites: int = 128,
) -> Sparsified:
    """Return a copy of a model in which single weights are zero, and stay zero in any training loop.

    The weights of all products with an activation are made sparse: linear layers, convolutions, packed projections, einsums.
    Zeros alone make no dense kernel faster; see docs/sparsity.md for what was measured, and `prune` for what is faster.

    Source: magnitude: Han et al., 2015. SNIP: Lee et al., 2019. Wanda: Sun et al., 2024. SparseGPT: Frantar and Alistarh, 2023.
    ERK: Evci et al., 2020.

    Args:
        model: stays as it is.
        example_inputs: as for `trace`.
        sparsity: share of zeros, at least 0 and below 1, of the weights that are made sparse. Not with `pattern`.
        pattern: N:M instead of a share, such as "2:4": at most 2 non-zeros of every 4 adjacent input channels.
        method: "magnitude"; "snip" (|w dL/dw|, needs data and a loss); "wanda" (|w| times the norm of its input, compared
            within each output, needs data); "sparsegpt" (second-order, and the weights that stay make up for those that go,
            layer by layer; needs data that can be gone through once per layer).
        allocation: "uniform" (unless given: each weight the same share), "global" (all weights compared with each other) or
            "erk" (small layers stay denser). Not with `pattern`.
        data: batches, as for `score`.
        loss: as for `score`.
        ignore: modules, parameters, patterns or types that stay dense.
        only: make nothing else sparse. Weights that an embedding reads as well stay dense unless they are named here.
        permute: with `pattern`, first permute channels, in all layers that share them, such that more magnitude is kept; the
            model computes the same before the zeros.
        damping: of "sparsegpt": added to the diagonal of the inputs' moments, as a share of its mean.
        sites: output positions per sample at which a convolution is sampled.

    Returns:
        The sparse model with its masks attached, the masks, and what each layer keeps. `bough.save(result, folder)` saves it,
        and a model that `prune` cut before by `bough.save(result.model, plan_of_the_cut, folder)`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: options that contradict each other, missing data, or nothing can be made sparse.
        TraceError: the model could not be run.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> sparse = bough.sparsify(net, torch.randn(1, 8), pattern="2:4")
        >>> sparse.layers[0].nonzeros, bough.sparsity.follows_pattern(sparse.model[0].weight, "2:4")
        (64, True)
        >>> bough.sparsify(net, torch.randn(1, 8), 0.75).sparsity
        0.75
    """
    check_arguments(sparsify, locals())
    options = _options(sparsity, pattern, method, allocation, data, loss, damping, sites, permute)
    if attached_masks(model):
        raise PlanError(
            f"{type(model).__name__} has masks already: bough.sparsity.detach_masks_(model) makes its zeros permanent"
        )
    names = as_names(traceable(model), ignore, "ignore"), None if only is None else as_names(traceable(model), only, "only")
    new = copied(model, lambda name, tensor, parameter: tensor.clone())[0]
    graph = trace(traceable(new), example_inputs)
    plan = uncut_plan(graph)  # with the digest of the weights as given
    matrices, left_out = selected_weights(graph, *names, options.pattern)
    permuted = permute_channels_(graph, matrices, options.pattern) if permute and options.pattern else Permuted()
    masks, errors = _make_sparse_(graph, matrices, options)
    layers = tuple(_layers(graph, matrices, masks, errors))
    attach_masks_(traceable(new), masks)
    described = str(options.pattern) if options.pattern else (allocation or "uniform")
    return Sparsified(new, masks, layers, left_out, method, described, plan, permuted)


def _options(
    sparsity: float | None, pattern: str | None, method: str, allocation: str | None, data: Data | Iterable[Any] | None,
    loss: Loss | None, damping: float, sites: int, permute: bool,
) -> _Options:  # fmt: skip
    """Return the options after checking each, and each with the others."""
    if (sparsity is None) == (pattern is None):
        raise PlanError("sparsify: give one of sparsity=0.5 (a share of zeros) and pattern='2:4'")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise PlanError(f"sparsity={sparsity}: the share of zeros must be at least 0 and below 1")
    if method not in METHODS:
        raise PlanError(f"method={method!r} is unknown: use one of {', '.join(map(repr, METHODS))}")
    if allocation is not None:
        allocation_named(allocation)
        if pattern is not None:
            raise PlanError(f"allocation={allocation!r} is for sparsity=: a pattern keeps the same share of every layer")
    if permute and pattern is None:
        raise PlanError("permute=True is for pattern=: unstructured sparsity gains nothing from another order of channels")
    if damping <= 0 or sites < 1:
        raise PlanError(f"damping={damping}, sites={sites}: damping must be above 0, sites at least 1")
    if method in _ON_DATA and data is None:
        raise PlanError(f"method={method!r} needs data: batches, such as data=loader")
    if method == "snip" and loss is None:
        raise PlanError("method='snip' needs loss=fn with fn(model, batch) -> a number")
    batches = None if data is None else as_data(data)
    if method == "sparsegpt" and batches is not None:
        require_reiterable(batches)
    chosen = None if pattern is None else Pattern.of(pattern)
    return _Options(sparsity or 0.0, chosen, method, allocation or "uniform", batches, loss, damping, sites)


def _make_sparse_(
    graph: Graph, matrices: Sequence[WeightMatrix], options: _Options
) -> tuple[dict[str, Tensor], list[float | None]]:
    """Return the masks, and the errors where weights were solved for; these are written to the model."""
    counts, scores = _counts_and_scores(graph, matrices, options)
    if options.method == "sparsegpt":
        assert options.data is not None
        solved = reconstruct_(
            graph, matrices, options.data, counts, options.pattern, damping=options.damping, sites=options.sites
        )
        return masks_from(graph, [(m, s.keep) for m, s in zip(matrices, solved, strict=True)]), [s.error for s in solved]
    if options.pattern is not None:
        kept = [options.pattern.keep(s, m.spread) for m, s in zip(matrices, scores, strict=True)]
    else:
        per_output = options.method == "wanda" and options.allocation != "global"
        kept = [keep_highest(s, c, per_output=per_output) for s, c in zip(scores, counts, strict=True)]
    return masks_from(graph, list(zip(matrices, kept, strict=True))), [None] * len(matrices)


def _counts_and_scores(graph: Graph, matrices: Sequence[WeightMatrix], options: _Options) -> tuple[list[int], list[Tensor]]:
    """Return how many elements each weight keeps, and the scores of its elements."""
    scores: list[Tensor] = []
    if options.method == "snip":
        assert options.data is not None
        assert options.loss is not None
        scores = snip_scores(graph, matrices, options.data, options.loss)
    elif options.method == "wanda":
        assert options.data is not None
        scores = wanda_scores(graph, matrices, options.data, options.sites)
    elif options.method == "magnitude":
        scores = magnitudes(graph, matrices)
    elif options.allocation == "global":
        assert options.data is not None
        scores = obs_scores(graph, matrices, options.data, options.damping, options.sites)
    total = round((1 - options.sparsity) * sum(m.size for m in matrices))
    if options.pattern is not None:
        return [m.size * options.pattern.n // options.pattern.m for m in matrices], scores
    return allocation_named(options.allocation)(matrices, total, scores), scores


def _layers(
    graph: Graph, matrices: Sequence[WeightMatrix], masks: dict[str, Tensor], errors: Sequence[float | None]
) -> Iterable[SparseLayer]:
    """Yield what each weight keeps."""
    for label, matrix, error in zip(labels(matrices), matrices, errors, strict=True):
        keep = matrix.gather(masks[matrix.name])
        weight = matrix.gather(graph.tensor(matrix.name)).double().square()
        whole = float(weight.sum())
        energy = float(torch.where(keep, weight, 0.0).sum()) / whole if whole and error is None else None
        yield SparseLayer(label, int(keep.sum()), matrix.size, energy, error)
