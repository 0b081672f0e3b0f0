"""`Pipeline`: stages from training to exported files as one resumable run in one folder, with one report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments, check_fields
from bough.calibration import Data, Loss, as_data, require_reiterable
from bough.errors import PipelineError
from bough.measuring import eval_mode
from bough.pipeline.records import PipelineResult, StageRecord
from bough.pipeline.report_file import PAGE, as_json_values, read_report, write_report
from bough.pipeline.settings import plain_settings
from bough.pipeline.stage import Before, Shared, Stage, State
from bough.quantization import weight_bytes
from bough.recovery import Training
from bough.recovery.training import full_state, seed_all, training_loader
from bough.report.pipeline_page import pipeline_page
from bough.storage import exclusive, make_folder, tensors_digest, write_text
from bough.tracing import trace
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.tree import tensors_within


@dataclass(frozen=True)
class Pipeline:
    """Stages from training to exported files, run in order in one folder, with one report as JSON and HTML.

    A run that was killed at any moment continues, and ends with the same files: finished stages are loaded, and a training that
    was begun goes on from its last state. Stages may be appended to a finished run.

    Attributes:
        build_model: returns the model with its first weights, the same each time it is called with the same seed.
        stages: of `bough.pipeline`: `Train`, `Prune`, `Refit`, `Distill`, `Quantize`, `Export`; each is optional.
        example_inputs: as for `trace`.
        train: training data, as for `finetune`.
        data: unlabelled batches, for pruning, refit, quantization and exports to C; must be the same in each iteration.
        loss, forward: as for `finetune`.
        evaluate: model -> metric, measured after each stage that changes the model; trainings keep their best weights by it.
        seed: of `build_model` and of all that stages draw.

    Raises:
        ArgumentError: an argument of another type.
        PipelineError: stages that do not fit together, or data that they need and that is missing.
        TrainingError, QuantizationError, ExportError: a package that a stage needs is not installed.

    Example:
        >>> import tempfile, torch, bough
        >>> from bough.pipeline import Prune, Train
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(96, 4)
        >>> train = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
        >>> stages = [Train(bough.Training(epochs=2)), Prune(bough.Budget(params="60%")), Train(bough.Training(epochs=1))]
        >>> pipeline = bough.Pipeline(build, stages, x[:1], train=train, data=x.split(32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = pipeline.run(folder)
        >>> [stage.name for stage in done.stages]
        ['start', 'train', 'prune', 'train']
    """

    build_model: Callable[[], nn.Module]
    stages: Sequence[Stage]
    example_inputs: Any
    train: Any = None
    data: Data | Iterable[Any] | None = None
    loss: Loss | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages:
            raise PipelineError("Pipeline(stages=[]) does nothing: give stages of bough.pipeline, such as Prune and Export")
        if self.example_inputs is not None and next(tensors_within(self.example_inputs), None) is None:
            raise PipelineError(f"example_inputs={self.example_inputs!r:.40} holds no tensor: give inputs, as for trace")
        if self.data is not None:
            require_reiterable(as_data(self.data, "Pipeline"))
        if self.train is not None:
            training_loader(self.train, Training())
        self._check_order()

    def _check_order(self) -> None:
        """Raise an error unless each stage can run after the earlier ones, with the data and the packages that there are."""
        names: tuple[str, ...] = ()
        files: set[str] = set()
        for stage in self.stages:
            if "quantize" in names and stage.name not in ("quantize", "export"):
                raise PipelineError(
                    f"the stage {type(stage).__name__} after Quantize: it works on the float model, so move it up"
                )
            stage.check(Before(names, self.train is not None, self.data is not None))
            file = getattr(stage, "file", None)
            if file in files:
                raise PipelineError(f"two stages Export write {file!r}: give them different files")
            files |= {file} if file is not None else set()
            names += (stage.name,)

    def run(self, folder: str | os.PathLike[str], *, progress: bool = False) -> PipelineResult:
        """Run all stages, or those that an earlier call in this folder has not finished.

        Args:
            folder: of the run; made if absent.
            progress: whether trainings show a progress bar.

        Raises:
            PipelineError: the folder holds another run, or is in use by one.
            BoughError: as the stages do; what was finished before stays in the folder.
        """
        check_arguments(Pipeline.run, locals())
        root = Path(folder)
        with exclusive(root, PipelineError), unchanged_rng():
            shared = Shared(
                self.example_inputs, self.train, self.data, self.loss, self.forward, self.evaluate, self.seed, root, progress
            )
            return _Run(self, shared).finish()


class _Run:
    """One call of `Pipeline.run`."""

    def __init__(self, pipeline: Pipeline, shared: Shared) -> None:
        self.pipeline, self.shared, self.root = pipeline, shared, shared.root
        seed_all(shared.seed, "model")
        model = pipeline.build_model()
        if not isinstance(model, nn.Module):
            raise PipelineError(f"build_model returned a {type(model).__name__}: it must return an nn.Module")
        self.state = State(model, model)
        tensors = ((n, t) for n, t in sorted(full_state(model).items()) if isinstance(t, Tensor))
        shapes = [f"{list(t.shape)} {t.dtype}" for t in tensors_within(shared.example_inputs)]
        self.start = {"seed": shared.seed, "weights": tensors_digest(tensors)[:16], "inputs": shapes}
        self.settings = as_json_values([plain_settings(stage) for stage in pipeline.stages])
        self.records: list[StageRecord] = []

    def finish(self) -> PipelineResult:
        """Restore the finished stages, run the others, and write the report after each."""
        finished = self._finished()
        resumed = max(len(finished) - 1, 0)
        if finished:
            self.records = finished[:1]
        else:
            begin = time.perf_counter()
            self._add("start", begin, {})
        for i, stage in enumerate(self.pipeline.stages):
            folder = self._folder(i)
            seed_all(self.shared.seed, "stage", i)
            if i < resumed:
                self.state = stage.restore(self.state, self.shared, folder)
                self.records.append(finished[i + 1])
                continue
            begin = time.perf_counter()
            make_folder(folder)
            self.state, details = stage.run(self.state, self.shared, folder)
            self._add(stage.name, begin, details)
        state = self.state
        state.model.eval()
        return PipelineResult(state.model, state.plan, state.quantized, tuple(self.records), self.root, resumed)

    def _finished(self) -> list[StageRecord]:
        """Return the records of the start and of the first stages that are finished and whose files are there."""
        found = read_report(self.root, self.start, self.settings)
        for i, stage in enumerate(self.pipeline.stages[: max(len(found) - 1, 0)]):
            if not all(path.exists() for path in stage.outputs(self.root, self._folder(i))):
                return found[: i + 1]
        return found

    def _folder(self, index: int) -> Path:
        return self.root / f"{index + 1}-{self.pipeline.stages[index].name}"

    def _add(self, name: str, begin: float, details: dict[str, Any]) -> None:
        """Add the record of a stage that ends now, and write the report."""
        changed = name != "export"
        metric = self._metric() if changed else None
        cost = self._cost() if changed else {}
        record = StageRecord(name, time.perf_counter() - begin, metric, cost, as_json_values(details))
        self.records.append(record)
        write_report(self.root, self.start, self.settings, self.records)
        stages = [r.to_dict() for r in self.records]
        write_text(self.root / PAGE, pipeline_page(f"bough: {self.root.name}", stages, self.state.plan))

    def _metric(self) -> float | None:
        if self.shared.evaluate is None:
            return None
        with eval_mode(self.state.current), torch.no_grad():
            return float(self.shared.evaluate(self.state.current))

    def _cost(self) -> dict[str, float]:
        """Return the costs of the float model, after quantization with the size of the weights of the program in INT8."""
        with eval_mode(self.state.model):
            cost = trace(self.state.model, self.shared.example_inputs).cost().to_dict()
        return cost if self.state.quantized is None else {**cost, "size": weight_bytes(self.state.quantized)}
