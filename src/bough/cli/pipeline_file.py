"""Pipelines as TOML files: references to the user's code at the top, and a table for each stage.

model = "mypackage.models:build"
task = "mypackage.data:task"
data = "mypackage.data:batches"

[[stage]]
kind = "prune"
budget = { macs = "50%" }
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from bough.cli.calibration import batches, calibration
from bough.cli.models import Resolved, resolve
from bough.cli.planning import allocation_of
from bough.cli.references import call, find
from bough.cli.tasks import task_of
from bough.errors import ModelReferenceError, PipelineError, instead
from bough.pipeline import Distill, Export, Pipeline, Prune, Quantize, Refit, Stage, Train
from bough.planning import Budget
from bough.recovery import Distillation, Training

_TOP = ("model", "weights", "input_shape", "task", "data", "forward", "seed", "stage")
_DISTILLATION = ("temperature", "logits", "dim")
_TRAINING = tuple(f.name for f in fields(Training) if f.name not in ("folder", "progress", "start"))
Table = dict[str, Any]


def read_pipeline(file: Path, *, quiet: bool = False) -> tuple[Pipeline, Resolved]:
    """Return the pipeline that a TOML file describes, and its model as it was found.

    Args:
        file: see above.
        quiet: do not print where weights are random, and show no progress.

    Raises:
        PipelineError: the file can not be read, or has an entry that is not known.
        ModelReferenceError: a reference leads nowhere.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PipelineError(f"{file} can not be read: {error}") from None
    _known(content, _TOP, str(file))
    if "model" not in content or not isinstance(content.get("stage"), list):
        raise PipelineError(f'{file}: needs model = "module:callable" and a table [[stage]] with a kind for each stage')
    given = resolve(content["model"], _shapes(content.get("input_shape")), content.get("weights"), quiet=quiet)
    task = None if "task" not in content else task_of(content["task"])
    data = None if "data" not in content else batches(content["data"], progress=not quiet)
    stages = [_stage(table, f"{file}, stage {i}") for i, table in enumerate(content["stage"], 1)]

    def build() -> nn.Module:
        return copy.deepcopy(given.model)

    pipeline = Pipeline(
        build, stages, given.inputs, train=None if task is None else task.train, data=data,
        loss=None if task is None else task.loss, evaluate=None if task is None else task.metric,
        forward=None if "forward" not in content else find(content["forward"]), seed=content.get("seed", 0),
    )  # fmt: skip
    return pipeline, given


def _stage(table: Any, where: str) -> Stage:
    """Return the stage that a table describes."""
    if not isinstance(table, dict) or table.get("kind") not in _KINDS:
        found = table.get("kind") if isinstance(table, dict) else table
        raise PipelineError(f"{where}: kind = {found!r} is unknown: {instead(str(found), _KINDS)}")
    options = {k: v for k, v in table.items() if k != "kind"}
    make, known = _KINDS[table["kind"]]
    _known(options, known, f"{where} ({table['kind']})")
    try:
        return make(options)
    except TypeError as error:
        raise PipelineError(f"{where} ({table['kind']}): {error}") from None


def _train(options: Table) -> Stage:
    return Train(Training(**options))


def _distill(options: Table) -> Stage:
    training, distillation, rest = _parts(options)
    teacher = rest.get("teacher")
    return Distill(Training(**training), Distillation(**distillation), None if teacher is None else lambda: _teacher(teacher))


def _teacher(reference: str) -> nn.Module:
    made = call(reference)
    model = made[0] if isinstance(made, tuple) else made
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference} returned {type(made).__name__}, not an nn.Module")
    return model


def _prune(options: Table) -> Stage:
    budget = options.pop("budget", None)
    if not isinstance(budget, Mapping):
        raise PipelineError('a stage of kind "prune" needs a budget, such as budget = { macs = "50%" }')
    _known(budget, Budget.__dataclass_fields__, "budget")
    if "importance" in options:
        options["importance"] = calibration(None, None, (), progress=False).criterion(options["importance"])
    if "allocation" in options:
        options["allocation"] = allocation_of(options["allocation"])
    return Prune(Budget(**budget), **options)


def _refit(options: Table) -> Stage:
    return Refit(**options)


def _quantize(options: Table) -> Stage:
    training, distillation, rest = _parts(options)
    return Quantize(
        **rest, training=Training(**training) if training else None,
        distillation=Distillation(**distillation) if distillation else None,
    )  # fmt: skip


def _export(options: Table) -> Stage:
    return Export(**options)


def _parts(options: Table) -> tuple[Table, Table, Table]:
    """Return the options of training, of distillation, and the others."""
    training = {k: v for k, v in options.items() if k in _TRAINING}
    distillation = {k: v for k, v in options.items() if k in _DISTILLATION}
    return training, distillation, {k: v for k, v in options.items() if k not in (*_TRAINING, *_DISTILLATION)}


def _own(stage: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(stage) if f.name not in ("training", "distillation"))


_KINDS: dict[str, tuple[Callable[[Table], Stage], tuple[str, ...]]] = {
    "train": (_train, _TRAINING),
    "distill": (_distill, (*_TRAINING, *_DISTILLATION, "teacher")),
    "prune": (_prune, _own(Prune)),
    "refit": (_refit, _own(Refit)),
    "quantize": (_quantize, (*_own(Quantize), *_TRAINING, *_DISTILLATION)),
    "export": (_export, _own(Export)),
}


def _known(table: Mapping[str, Any], names: Collection[str], where: str) -> None:
    unknown = next((k for k in table if k not in names), None)
    if unknown is not None:
        raise PipelineError(f"{where}: {unknown} is unknown: {instead(unknown, names)}")


def _shapes(given: Any) -> list[str] | None:
    """Return what `input_shape` says as --input-shape would: lists of sizes, or text."""
    if given is None:
        return None
    shapes = given if isinstance(given, list) and given and isinstance(given[0], (list, str)) else [given]
    return [s if isinstance(s, str) else ",".join(map(str, s)) for s in shapes]
