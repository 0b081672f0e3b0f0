"""`bough finetune` and `bough distill`: the run's folder keeps the log, the curve and the state, and the same command again
goes on where it was killed. What a task is: see `bough.cli.tasks`."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import bough
from bough.cli.lora import lora_options
from bough.cli.models import Resolved, pruned, resolve
from bough.cli.options import Json, Original, Overwrite, Shape, WeightsOf, chosen, given_by, training_options
from bough.cli.outputs import save, unused, writable
from bough.cli.qat import QATOptions, qat_options
from bough.cli.references import find
from bough.cli.tasks import CONTRACT, task_of
from bough.cutting.check import check_weights
from bough.errors import CheckpointError, ModelReferenceError, TrainingError
from bough.quantization import save_quantized
from bough.quantization.saved import PROGRAM
from bough.recovery import Distillation, Features, LoRA, Trained, Training
from bough.recovery import distill as distill_model
from bough.recovery import finetune as finetune_model
from bough.recovery.regularize import Sparse
from bough.recovery.training import STATE_FILE
from bough.tracing.capture.wrapped import unwrap

Small = Annotated[Path | None, typer.Option(help="a folder that `bough prune --out` wrote; needed unless --qat is given")]
Needed = Annotated[str, typer.Argument(help=CONTRACT)]
KeepZeros = Annotated[
    bool, typer.Option("--keep-zeros", help="of a checkpoint of `bough sparsify`: elements of weights that are zero stay zero")
]
Forward = Annotated[
    str | None, typer.Option(help="module:fn; fn(model, batch) runs the model; model(batch[0]) or model(**batch) unless given")
]


@given_by(training=training_options, qat=qat_options, lora=lora_options)
def finetune(
    model: Original, task: Needed, *, checkpoint: Small = None, training: Training, qat: QATOptions | None,
    lora: LoRA | None, keep_zeros: KeepZeros = False, forward: Forward = None, input_shape: Shape = None,
    weights: WeightsOf = None, overwrite: Overwrite = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Train a pruned model on (with --lora, adapters alone), and save it with its plan; with --qat, in INT8."""
    _check_out(training, checkpoint, qat, overwrite)
    given, original = task_of(task), resolve(model, input_shape, weights, quiet=as_json)
    small = _small(original, checkpoint)
    done = finetune_model(
        small.model, given.train, _named(training, small, as_json), loss=given.loss, evaluate=given.metric,
        quantization=None if qat is None else qat.of(original.inputs, progress=not as_json),
        regularizers=_zeros_kept(small.model, keep_zeros, qat), lora=lora,
        **chosen(forward=None if forward is None else find(forward)),
    )  # fmt: skip
    _finish(small, original, done, training, model, as_json)


@given_by(training=training_options, qat=qat_options, lora=lora_options)
def distill(
    model: Original, task: Needed, *, checkpoint: Small = None, training: Training, qat: QATOptions | None,
    lora: LoRA | None,
    temperature: Annotated[float | None, typer.Option(help="of both models' logits")] = None,
    logits: Annotated[float | None, typer.Option(help="from 0 (labels alone) to 1 (the original's logits alone)")] = None,
    features: Annotated[list[str] | None, typer.Option(help="a module whose outputs are to match; may be repeated")] = None,
    features_weight: Annotated[float | None, typer.Option(help="of the distance of --features in the loss")] = None,
    dim: Annotated[int | None, typer.Option(help="of the logits, where classes are")] = None,
    keep_zeros: KeepZeros = False, forward: Forward = None, input_shape: Shape = None, weights: WeightsOf = None,
    overwrite: Overwrite = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Train a pruned model to answer as the original does, and save it with its plan; with --qat, in INT8.

    The teacher is MODEL in float; without --checkpoint, --qat trains MODEL itself in INT8.
    """
    _check_out(training, checkpoint, qat, overwrite)
    given, teacher = task_of(task), resolve(model, input_shape, weights, quiet=as_json)
    small = _small(teacher, checkpoint)
    if small.plan is not None:
        check_weights(unwrap(teacher.model), small.plan)
    if features and qat is not None:
        raise TrainingError("--features and --qat exclude each other: the program that --qat trains has no modules to match")
    match = Features(bough.trace(teacher.model, teacher.inputs), features, plan=small.plan) if features else None
    done = distill_model(
        small.model, teacher.model, given.train, _named(training, small, as_json), loss=given.loss, evaluate=given.metric,
        distillation=Distillation(**chosen(
            temperature=temperature, logits=logits, features=features_weight, match=match, dim=dim
        )),
        quantization=None if qat is None else qat.of(teacher.inputs, progress=not as_json),
        regularizers=_zeros_kept(small.model, keep_zeros, qat), lora=lora,
        **chosen(forward=None if forward is None else find(forward)),
    )  # fmt: skip
    _finish(small, teacher, done, training, model, as_json)


@dataclass(frozen=True, slots=True)
class _Small:
    """The model to train, and the plan that it was cut by; None where it was not cut."""

    model: nn.Module
    plan: bough.Plan | None


def _small(original: Resolved, checkpoint: Path | None) -> _Small:
    if checkpoint is None:
        return _Small(original.model, None)
    found = pruned(original, checkpoint)
    return _Small(found.model, found.plan)


def _zeros_kept(model: nn.Module, wanted: bool, qat: QATOptions | None) -> tuple[Sparse, ...]:
    """Return what keeps the zeros of a model's weights at zero, if that is wanted."""
    if not wanted:
        return ()
    if qat is not None:
        raise TrainingError("--keep-zeros and --qat exclude each other: the program that --qat trains has weights of its own")
    masks = {name: p.detach() != 0 for name, p in model.named_parameters() if p.dim() > 1 and bool((p == 0).any())}
    if not masks:
        raise TrainingError("--keep-zeros: no weight of the checkpoint has zeros; `bough sparsify --out` writes one that has")
    return (Sparse(model, masks),)


def digest(model: nn.Module, plan: bough.Plan | None = None) -> str:
    """Of the weights and the plan: a run in a folder is not taken up by another model of the same shapes."""
    found = hashlib.blake2b((plan.to_json() if plan else "").encode(), digest_size=8)
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_out(training: Training, checkpoint: Path | None, qat: QATOptions | None, overwrite: bool) -> None:
    assert training.folder is not None
    if checkpoint is None and qat is None:
        raise ModelReferenceError("give --checkpoint, a folder that `bough prune --out` wrote; only --qat trains MODEL itself")
    out = Path(training.folder)
    writable(out, folder=True)
    unused(out, overwrite, run=STATE_FILE)
    if qat is not None and not overwrite and (out / PROGRAM).exists() and not (out / STATE_FILE).is_file():
        raise CheckpointError(f"{out} has a quantized program already: give another --out, or --overwrite")


def _named(training: Training, small: _Small, as_json: bool) -> Training:
    return replace(training, progress=not as_json, start=digest(small.model, small.plan))


def _finish(small: _Small, original: Resolved, done: Trained, training: Training, model: str, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # one of several processes
        return
    trained = small.model if done.quantized is None else done.quantized.simulated
    if not all(bool(p.isfinite().all()) for p in trained.parameters()):
        raise TrainingError("the trained weights are not finite: nothing was saved")
    assert training.folder is not None
    message = f"saved in {training.folder}"
    if done.quantized is not None:
        save_quantized(done.quantized, original.inputs, training.folder, overwrite=True)
    else:
        assert small.plan is not None
        message = save(small.model, small.plan, Path(training.folder), model)
    if as_json:
        found = {**done.to_dict(), "weights": original.weights.to_dict(), "saved": str(training.folder)}
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{done}\n{message}; with log.jsonl and curve.png")
