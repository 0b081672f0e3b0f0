"""What is measured of each variant of a contrast: metric, training, costs, files and latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from bough.contrasting.contrast_rows import DENSE, ContrastRow
from bough.contrasting.variants import Made, Maker, nonzero_macs
from bough.cutting.cut import plain_copy
from bough.errors import BoughError, ComparisonError
from bough.measuring import latencies
from bough.recovery import Training, finetune
from bough.recovery.training import training_loader
from bough.sparsity import file_sizes, use_sparse_kernels

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Training that all variants get alike, once per seed.

    Attributes:
        run: (model, seed) -> trains the model in place.
        seeds: of the runs; empty for no training.
        name: what distinguishes it from other trainings.
    """

    run: Callable[[nn.Module, int], object]
    seeds: tuple[int, ...]
    name: str

    @classmethod
    def of(
        cls,
        recover: Callable[[nn.Module], object] | None,
        train: Any,
        training: Training | None,
        loss: Any,
        seeds: Sequence[int],
    ) -> Recovery:
        """Return the training that the arguments of `contrast` describe.

        Raises:
            ComparisonError: arguments that exclude each other, or no seeds.
            TrainingError: data that can not be trained on.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            raise ComparisonError(f"seeds={list(seeds)}: give at least one seed, and each once, such as seeds=(0, 1, 2)")
        if recover is not None and (train is not None or training is not None):
            raise ComparisonError("contrast: give recover=fn, or train=loader with training=Training(...), not both")
        if recover is None and train is None:
            if training is not None or loss is not None or len(seeds) > 1:
                raise ComparisonError("contrast(training=, loss=, seeds=) describe a training: give train=loader as well")
            return cls(lambda model, seed: None, (), "none")
        if recover is not None:
            return cls(_seeded(recover), tuple(seeds), getattr(recover, "__qualname__", str(recover)))
        options = training or Training()
        if options.folder is not None:
            raise ComparisonError("training.folder is not for contrast: rows that are done are kept in folder=")
        training_loader(train, options)  # fails now, and not row by row, if the data can not be trained on
        named = f"finetune, {replace(options, progress=False)}, loss {getattr(loss, '__qualname__', loss)}"
        return cls(lambda model, seed: finetune(model, train, replace(options, seed=seed), loss=loss), tuple(seeds), named)


def _seeded(recover: Callable[[nn.Module], object]) -> Callable[[nn.Module, int], object]:
    def run(model: nn.Module, seed: int) -> object:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return recover(model)

    return run


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measures variants, each in the same way.

    Attributes:
        maker: of the variants, with the dense model.
        evaluate: model -> metric.
        recovery: training that all variants get.
        kernels: layouts of sparse kernels that variants with zeros are timed on.
        repeats, clock: of the timing.
    """

    maker: Maker
    evaluate: Evaluate
    recovery: Recovery
    kernels: tuple[str, ...]
    repeats: int
    clock: str

    def row(self, row: ContrastRow, made: Made) -> ContrastRow:
        """Return the row of a variant: its metric before and after training, and the costs of the plain model."""
        before, trained = self._metric(made.model), list[float]()
        if row.variant != DENSE:
            copies = [made.model, *(plain_copy(made.model) for _ in self.recovery.seeds[1:])]
            for seed, model in zip(self.recovery.seeds, copies, strict=False):
                self.recovery.run(model, seed)
                trained.append(self._metric(model))
        plain = made.plain().eval()
        macs, computed, memory = nonzero_macs(plain, self.maker.example_inputs)
        parameters = list(plain.parameters())
        seconds, speedup, notes = self._timed(row, plain)
        return replace(
            row, params=sum(p.numel() for p in parameters), nonzeros=sum(int(p.count_nonzero()) for p in parameters),
            macs=macs, nonzero_macs=computed, peak_memory=memory, files=_files(plain), seconds=seconds, speedup=speedup,
            before=before, after=fmean(trained) if trained else None, trained=trained, notes=notes,
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
            for layout in self.kernels:
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
