"""`prune_checkpoint`: a folder of transformers to a smaller one, file by file, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, require_few_batches
from bough.cutting import cut
from bough.errors import BoughError, CheckpointError, PlanError, WriteError
from bough.exporting.checkpoint import Folder, folder_path, refuse_checkpoint
from bough.graph import Graph
from bough.importance import Criterion, DataCriterion, UnitScores, group_members, resolve_criterion
from bough.importance.score import with_data_reached
from bough.importance.score_checks import check_scores
from bough.planning import Allocator, Budget, Options, Plan, config_mismatch, planned
from bough.storage import exclusive
from bough.streaming.architecture import architecture, example_inputs
from bough.streaming.names import Names
from bough.streaming.pieces import Pieces, Placed, pieces_of, placed
from bough.streaming.progress import ByteProgress
from bough.streaming.refit import CheckpointRefit, RefittedFiles, StreamedRefit
from bough.streaming.resident import ResidentBlocks
from bough.streaming.run_folder import RunFolder
from bough.streaming.shards import Shards, read_shards
from bough.streaming.weights import StreamedWeights
from bough.tracing import trace
from bough.tracing.selection import Selection


@dataclass(frozen=True, slots=True)
class StreamedResult:
    """What `prune_checkpoint` wrote.

    Attributes:
        folder: the folder that `from_pretrained` loads.
        plan: what was cut.
        bytes_before, bytes_after: of all tensors in the files.
        resumed: whether an earlier run that ended early was continued.
        unknown: tensors of the original's files that are no part of the model (transformers ignores them); they are not
            in the new files.
        refit: errors of each refitted weight, and the weights that were not refitted; None without `refit=True`.
    """

    folder: Path
    plan: Plan
    bytes_before: int
    bytes_after: int
    resumed: bool
    unknown: tuple[str, ...]
    refit: StreamedRefit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, without the plan's indices."""
        return {
            "folder": str(self.folder), "before": self.plan.original.to_dict(), "after": self.plan.cost.to_dict(),
            "bytes_before": self.bytes_before, "bytes_after": self.bytes_after, "resumed": self.resumed,
            "unknown": list(self.unknown), "groups": self.plan.groups, "notes": list(self.plan.notes),
            "refit": None if self.refit is None else self.refit.to_dict(),
        }  # fmt: skip


def prune_checkpoint(
    source: Folder,
    budget: Budget,
    out: Folder,
    *,
    importance: str | Criterion | DataCriterion = "group",
    data: Data | Iterable[Any] | None = None,
    refit: bool = False,
    allocation: str | Allocator = "global",
    round_to: int | str = 1,
    minimum: float | Mapping[Any, float] = 1,
    drop: Iterable[str] = (),
    ignore: Selection = (),
    only: Selection | None = None,
    exact_only: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> StreamedResult:
    """Prune a folder of transformers that need not fit into memory, and write a folder that `from_pretrained` loads.

    The architecture is traced on the meta device; scores are computed from one parameter at a time; the files are cut a few
    rows at a time. The plan is a uniform one, which the config can express. The same criterion and allocation give the same
    tensors, bit for bit, as `prune(..., uniform=True)` of the loaded model; the cut model is not run, so there is no
    verification by numbers. A run that ended early, however it ended, is continued by the same call.

    Args:
        source: folder with `config.json` and safetensors files; only read.
        budget: upper bounds on what remains.
        out: the new folder; made if absent.
        importance: the criterion, as for `score`. Of those on data, the ones that read statistics of activations, such as
            "wanda", "flap" and "block_influence"; not those that need a loss, gradients or second moments.
        data: batches, for a criterion on data, and for `refit`. They run block by block, with the weights of one block in
            memory, and the inputs of the next block of all batches.
        refit: whether the weights of layers whose inputs the cut has changed are solved for, as `bough.refit` does, on at most
            256 batches; one block of the dense model and one of the cut model are in memory.
        allocation, round_to, minimum, drop, ignore, only, exact_only: as for `plan`.
        overwrite: replace a checkpoint that is in `out`, and an unfinished run of other arguments (one that has no plan yet is
            always replaced).
        progress: whether to show a progress bar of bytes.

    Raises:
        CheckpointError: a file of `source` is missing, truncated, damaged, or does not fit the config; or `out` has a
            checkpoint, an unfinished run of other arguments, or is in use.
        WriteError: a file can not be written, such as on a full disk; the same call continues.
        BudgetError, PlanError, TraceError: as `plan` and `trace` do; the criterion or `refit` needs data.

    Example:
        >>> import tempfile, bough, transformers
        >>> config = transformers.LlamaConfig(
        ...     hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     transformers.LlamaForCausalLM(config).save_pretrained(f"{folder}/llama")
        ...     result = bough.prune_checkpoint(f"{folder}/llama", bough.Budget(params="60%"), f"{folder}/small")
        ...     small = transformers.LlamaForCausalLM.from_pretrained(f"{folder}/small")
        >>> small.config.hidden_size < 16, sum(p.numel() for p in small.parameters()) == result.plan.cost.params
        (True, True)
    """
    check_arguments(prune_checkpoint, locals())
    origin, place = folder_path(source, "prune_checkpoint"), folder_path(out, "prune_checkpoint")
    criterion = resolve_criterion(importance)
    batches = None if data is None else as_data(data, "prune_checkpoint")
    _check_data(criterion, batches, refit)
    options = Options(
        allocation=allocation, round_to=round_to, minimum=minimum, drop=drop, ignore=ignore, only=only, exact_only=exact_only,
        uniform=True,
    )  # fmt: skip
    if origin.resolve() == place.resolve():
        raise CheckpointError(f"{place} is the folder of the original, which is not overwritten: give another folder")
    shards = read_shards(origin)
    run = RunFolder.of(place, origin, shards, (repr(criterion), repr(budget), repr(options), str(data is not None), str(refit)))
    if not overwrite and not run.exists():
        refuse_checkpoint(place)
    with exclusive(run.folder, CheckpointError):
        try:
            return _Pruning(origin, shards, run, progress, refit).result(criterion, batches, budget, options, overwrite)
        except WriteError:
            raise
        except BoughError:
            run.forget()
            raise


@dataclass(frozen=True, slots=True)
class _Pruning:
    """The steps, each of which looks for what an earlier run left."""

    origin: Path
    shards: Shards
    run: RunFolder
    progress: bool
    refit: bool

    def result(
        self, criterion: Any, data: Data | None, budget: Budget, options: Options, overwrite: bool
    ) -> StreamedResult:  # fmt: skip
        resumed = self.run.begin(overwrite)
        model = architecture(self.origin)
        names = Names(model)
        where = placed(names, self.shards)
        plan = self.run.plan() or self._planned(model, names, where, criterion, data, budget, options)
        small = cut(model, plan)
        why = config_mismatch(small)
        if why is not None:
            raise PlanError(f"the config can not express the plan ({why}); use bough.prune of the loaded model, and bough.save")
        after = Names(small)
        pieces, refitted = pieces_of(plan, names, after, self.shards, where), None
        if self.refit and data is not None:
            files = RefittedFiles(self.run.refitted)
            refitted = files.ended() or self._refitted((model, small), (names, after), where, plan, pieces, files, data)
            pieces = pieces.replaced(files.tensors())
        self._write(pieces)
        self.run.finish(plan, small, pieces)
        return StreamedResult(self.run.place, plan, self.shards.size, pieces.size, resumed, pieces.unknown, refitted)

    def _refitted(
        self, models: tuple[nn.Module, nn.Module], names: tuple[Names, Names], where: Placed, plan: Plan, pieces: Pieces,
        files: RefittedFiles, data: Data,
    ) -> StreamedRefit:  # fmt: skip
        """Refit the cut model block by block."""
        self.run.check_space(2 * pieces.size)  # the refitted tensors, and the files that are then written
        with ByteProgress("refit", self.progress) as bar:
            weights = StreamedWeights(self.shards, where, names[0], on_read=bar.advance)
            refit = CheckpointRefit(models, names, plan, self.shards, weights, pieces, files, bar.advance)
            bar.total = refit.size()
            return refit.run(data)

    def _planned(
        self, model: nn.Module, names: Names, where: Placed, criterion: Any, data: Data | None, budget: Budget, options: Options
    ) -> Plan:  # fmt: skip
        if data is not None and getattr(criterion, "needs_data", False):
            graph, scores = self._scored_on_data(model, names, where, criterion, data)
        else:
            graph, scores = self._scored_by_weights(model, names, where, criterion)
        plan = planned(graph, scores, budget, options)
        self.run.keep_plan(plan)
        return plan

    def _scored_by_weights(self, model: nn.Module, names: Names, where: Placed, criterion: Any) -> tuple[Graph, UnitScores]:
        """Return the graph, and scores from one parameter at a time."""
        graph = trace(model, example_inputs(model))
        with closing(self.run.log()) as log, ByteProgress("score", self.progress) as bar:
            weights = StreamedWeights(self.shards, where, names, log, bar.advance)
            bar.total = sum(map(weights.size, _scored(graph, criterion)))
            reading = replace(graph, weights=weights)
            return graph, check_scores(reading, criterion(reading), criterion)

    def _scored_on_data(
        self, model: nn.Module, names: Names, where: Placed, criterion: Any, data: Data
    ) -> tuple[Graph, UnitScores]:  # fmt: skip
        """Return the graph, and scores from data that runs block by block."""
        with ByteProgress("score", self.progress) as bar:
            graph = with_data_reached(trace(model, example_inputs(model)), [criterion])
            blocks = ResidentBlocks(graph, StreamedWeights(self.shards, where, names, on_read=bar.advance))
            bar.total = blocks.size()
            return graph, check_scores(blocks.graph, criterion(blocks.graph, blocks.data(data)), criterion)

    def _write(self, pieces: Pieces) -> None:
        missing = [f for f in pieces.by_file if not self.run.has(f)]
        self.run.check_space(sum(p.size for f in missing for p in pieces.by_file[f]))
        with ByteProgress("cut", self.progress) as bar:
            bar.total = sum(e.end - e.start for f in missing for e in self.shards.headers[f].entries)
            for file in missing:
                self.run.write(file, pieces.by_file[file], self.shards.headers[file].metadata, bar.advance)


def _check_data(criterion: Any, data: Data | None, refit: bool) -> None:
    """Raise PlanError if a criterion, the data and `refit` do not go together."""
    name = type(criterion).__name__
    if refit:
        if data is None:
            raise PlanError("prune_checkpoint(refit=True) needs data: unlabelled batches, such as data=loader")
        require_few_batches(data)
    if not getattr(criterion, "needs_data", False):
        if data is not None and not refit:
            raise PlanError(f"{name} reads no data: leave data out, or use a criterion on data, such as importance='wanda'")
        return
    if data is None:
        raise PlanError(f"{name} needs data: give data=batches, or use a criterion on weights, such as importance='group'")
    if getattr(criterion, "gives_errors", False):
        raise PlanError(
            f"{name} keeps second moments of all layers at once, which takes more memory than the model: use wanda or flap, or "
            "load the model and use bough.prune"
        )


def _scored(graph: Graph, criterion: Any) -> set[str]:
    """Return the parameters that a criterion on weights reads, as far as is known."""
    return {name for name, _ in group_members(graph, inputs=getattr(criterion, "includes_consumers", False))}
