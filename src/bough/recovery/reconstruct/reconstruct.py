"""`reconstruct`: train each block of a cut model to give what the dense model's block gives, in the order of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calibration import (
    Data,
    as_data,
    example_inputs_from,
    first_batches,
    preserve_state,
    require_few_batches,
    show_progress,
)
from bough.cutting.check import check
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.planning import Plan
from bough.recovery.correspondence import check_cut_shapes, kept_units, select_kept
from bough.recovery.reconstruct.blocks import Block, find_blocks
from bough.recovery.reconstruct.runs import BlockInput, BlockRuns, call_counts
from bough.recovery.refit.targets import inverse_squares
from bough.tracing import trace
from bough.tracing.capture.wrapped import traceable

_HELD_OUT = 8  # every eighth batch judges, and is not trained on


@dataclass(frozen=True, slots=True)
class ReconstructedBlock:
    """A block that was trained.

    Attributes:
        name: of the module in the cut model.
        before, after: E|y - z|^2 / E|y|^2 of the dense model's output y and the block's output z on batches that were held out.
    """

    name: str
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reconstructed:
    """Result of `reconstruct`.

    Attributes:
        model: the trained model.
        blocks: the errors of each block, in the order of the run.
        skipped: blocks that were not trained, with the reason.
        plan: by which the model was cut.
    """

    model: nn.Module
    blocks: tuple[ReconstructedBlock, ...]
    skipped: dict[str, str]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Return the records as plain data."""
        return {"blocks": [b.to_dict() for b in self.blocks], "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        lines = [f"{'reconstructed':48} {'before':>9} {'after':>9}"]
        lines += [f"{b.name:48} {b.before:9.2%} {b.after:9.2%}" for b in self.blocks]
        lines += [f"not reconstructed: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = __str__


def reconstruct(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    data: Data | Iterable[Any],
    *,
    epochs: int = 10,
    rate: float = 0.02,
    example_inputs: Any = None,
    progress: bool = False,
) -> Reconstructed:
    """Return a copy of the cut model whose blocks were trained, one by one, to give what the dense model's blocks give.

    In the order of the run, all parameters of a block, such as a decoder layer of a language model or a residual block of a
    CNN, minimize the squared error between the block's output, on its input in the cut model with the blocks before it trained
    already, and the dense model's output of the same block for the kept units. So no labels are needed, gradients are those
    of one block at a time, and errors do not accumulate. Where the last dim of the output has the features, as in a residual
    stream, each row counts by its relative error. Every eighth batch is held out (of fewer, the last one): a block keeps the
    weights of the epoch with the least error on these, or those it had.

    Start from a refitted model: `refit` solves single layers at once, and `reconstruct` also fits the weights in front of a
    nonlinearity.

    Source: Li et al., 2021 (BRECQ: blocks as units of reconstruction).

    Args:
        model: the dense model; stays as it is.
        small: the model cut from it by `plan`; may have been refitted or trained since. Stays as it is.
        plan: by which `small` was cut.
        data: batches, as for `score`, at most 256; gives the same batches in the same order in each iteration.
        epochs: how often each block sees the batches.
        rate: of Adam's steps, as a share of the root mean square of each parameter; falls to 0 in the shape of a cosine.
        example_inputs: as for `trace`; needed if `data` is a `Data` with a `forward` of its own.
        progress: whether to show a progress bar of the blocks.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the plan is for another model, `small` was cut by another plan, no block is found, a block has weights of
            less precision than float32, or the data is empty or has too many batches.

    Example:
        >>> import torch, bough
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(Block(), Block())), torch.randn(256, 4)
        >>> result = bough.prune(net, x[:2], bough.Budget(params="60%"), data=x.split(32))
        >>> done = reconstruct(net, result.model, result.plan, x.split(32))
        >>> [block.after <= block.before for block in done.blocks]
        [True, True]
    """
    check_arguments(reconstruct, locals())
    if epochs < 1 or not 0 < rate <= 1:
        raise PlanError(f"reconstruct(epochs={epochs}, rate={rate}): epochs must be at least 1, rate above 0 and at most 1")
    batches = as_data(data, "reconstruct")
    require_few_batches(batches)
    if not first_batches(batches, 1):
        raise PlanError("the data gives no batches: give a list or a DataLoader of samples")
    dense = traceable(model)
    trained = copied(small, lambda name, tensor, parameter: tensor.clone())[0]
    cut = traceable(trained)
    check(dense, plan)
    check_cut_shapes(cut, plan)
    first = example_inputs_from(dense, batches, plan.inputs) if example_inputs is None else example_inputs
    with preserve_state(dense), preserve_state(cut):
        graphs = trace(dense, first), trace(cut, first)
    with preserve_state(dense, graphs[0].written), preserve_state(cut, graphs[1].written):
        blocks, skipped = find_blocks(graphs[0], plan)
        counts = call_counts(graphs[1], [b.small for b in blocks], batches)
        skipped.update({b.name: "a run calls it more or less than once" for b in blocks if counts[b.small] != 1})
        blocks = tuple(b for b in blocks if b.name not in skipped)
        if not blocks:
            why = "; ".join(f"{n}: {w}" for n, w in list(skipped.items())[:5])
            raise PlanError(
                f"{type(dense).__name__} has no blocks that can be reconstructed: entries of a list of residual blocks or "
                f"decoder layers{f' ({why})' if why else ''}; use bough.refit and bough.distill"
            )
        kept, records = kept_units(graphs[0], plan), []
        with BlockRuns(graphs, blocks, batches) as runs:
            for block in show_progress(blocks, "reconstruct", len(blocks)) if progress else blocks:
                found = []
                for given, output in runs.next():
                    target = select_kept(output, block.axes, kept)
                    assert target is not None
                    found.append((given, target))
                before, after = _BlockTraining(cut.get_submodule(block.small), found, block).run(epochs, rate)
                records.append(ReconstructedBlock(block.small, before, after))
    return Reconstructed(trained, tuple(records), skipped, plan)


class _BlockTraining:
    """The training of one block.

    Args:
        module: the block of the cut model.
        batches: what enters it, and what it has to give.
        block: how its output is to be read.
    """

    def __init__(self, module: nn.Module, batches: Sequence[tuple[BlockInput, Tensor]], block: Block) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.is_floating_point()]
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.parameters):
            raise PlanError(
                f"{block.small} has weights of half precision, which small steps would not change: train small.float()"
            )
        rows = [_row_weights(target) if block.features else None for _, target in batches]
        found = [(given, target, weights) for (given, target), weights in zip(batches, rows, strict=True)]
        self.judges = found[_HELD_OUT - 1 :: _HELD_OUT] or found[-1:]
        self.train = [x for x in found if all(x is not judge for judge in self.judges)] or found

    def run(self, epochs: int, rate: float) -> tuple[float, float]:
        """Train, and return the held-out error before and after."""
        before = least = self._error()
        best = [p.detach().clone() for p in self.parameters]
        optimizer = torch.optim.Adam([{"params": [p], "lr": rate * _scale(p)} for p in self.parameters], betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(self.train))
        draw = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for i in torch.randperm(len(self.train), generator=draw).tolist():
                self._step(optimizer, *self.train[i])
                decay.step()
            error = self._error()
            if error < least:
                least, best = error, [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, best, strict=True):
                parameter.copy_(value)
        return before, least

    def _step(self, optimizer: torch.optim.Optimizer, given: BlockInput, target: Tensor, weights: Tensor | None) -> None:
        with torch.enable_grad():
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            loss = _squares(given.run(self.module) - target, weights) / _squares(target, weights)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.requires_grad_(False)
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def _error(self) -> float:
        """Return the relative error on the batches that were held out."""
        errors = sum(float(_squares(given.run(self.module) - target, weights)) for given, target, weights in self.judges)
        return errors / max(sum(float(_squares(target, weights)) for _, target, weights in self.judges), 1e-300)


def _squares(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum of squares, each row times its weight if there are any."""
    return values.square().sum() if weights is None else (values.square().sum(-1) * weights).sum()


def _row_weights(target: Tensor) -> Tensor:
    """Return the weights with which relative errors of rows count, in the shape of the target without its last dim."""
    squares = target.square().sum(-1)
    return inverse_squares(squares.flatten()).view(squares.shape)


def _scale(parameter: Tensor) -> float:
    """Return the root mean square of a parameter; of one that is zero, 1e-3."""
    return float(parameter.detach().float().square().mean().sqrt()) or 1e-3
