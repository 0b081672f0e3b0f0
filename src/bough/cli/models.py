"""From a model reference to a model and example inputs.

module:callable    returns the model, or (model, example inputs), or (model, list of bough.Call)
timm:NAME          torchvision:NAME          hf:PATH (a folder with config.json)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

import bough
from bough.cli import libraries
from bough.cli.references import call, find
from bough.cli.weights import PRETRAINED, RANDOM, Weights, load_weights
from bough.cutting.cut import copied
from bough.errors import ModelReferenceError
from bough.exporting import load_plan

_LIBRARIES = {"timm": libraries.timm, "torchvision": libraries.torchvision, "hf": libraries.hugging_face}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model in eval mode, its example inputs, and where its weights are from."""

    model: nn.Module
    inputs: Any
    weights: Weights


def resolve(
    reference: str, shapes: Sequence[str] | None = None, weights: str | None = None, *, values: bool = True, quiet: bool = False
) -> Resolved:  # fmt: skip
    """Return the model that a reference names.

    Args:
        reference: see above.
        shapes: sizes such as "1,3,224,224" of example inputs, a call each, that take the place of the reference's own.
        weights: a file; or "random" or "pretrained"; None for pretrained ones where they can be had.
        values: whether the values of the weights count; where they do not, none are fetched.
        quiet: do not print where random weights are used.

    Raises:
        ModelReferenceError: nothing is found, or example inputs are needed and not known.
        CheckpointError: the file of weights does not fit.
    """
    kind, colon, name = reference.partition(":")
    if not colon or not name:
        raise ModelReferenceError(
            f"{reference!r} is no model reference: write module:callable, timm:NAME, torchvision:NAME or hf:PATH"
        )
    given = None if weights in (None, RANDOM, PRETRAINED) else Path(str(weights))
    if given is not None and not given.is_file():
        raise ModelReferenceError(f"--weights {given}: there is no such file; write a file, random or pretrained")
    if kind in _LIBRARIES:
        model, inputs, source = _LIBRARIES[kind](name, RANDOM if given or not (values or weights) else weights)
    elif weights in (RANDOM, PRETRAINED):
        raise ModelReferenceError(f"--weights {weights} is for timm:, torchvision: and hf:; {reference} makes its own")
    else:
        model, inputs = _built(reference)
        source = Weights("builder", f"as {reference} makes them")
    if given is not None:
        source = load_weights(model, given, reference)
    if shapes:
        inputs = [bough.Call(_input(shape)) for shape in shapes]
    if inputs is None:
        raise ModelReferenceError(f"{reference} gives no example inputs: return (model, inputs), or use --input-shape")
    if source.source == RANDOM and not values and weights is None:
        source = Weights(RANDOM, "this command looks at shapes alone")
    if source.source == RANDOM and not quiet:
        typer.echo(source, err=True)
    return Resolved(model.eval(), inputs, source)


def _input(shape: str) -> Tensor:
    """Return an example input of sizes such as "1,3,224,224"."""
    try:
        return torch.randn([int(n) for n in shape.split(",")])
    except (ValueError, RuntimeError):
        raise ModelReferenceError(f"--input-shape {shape!r}: write sizes with commas, such as 1,3,224,224") from None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `bough prune --out` saved."""

    model: nn.Module
    plan: bough.Plan


def pruned(original: Resolved, checkpoint: Path) -> Pruned:
    """Return the pruned form of a model, which stays as it is, from its checkpoint."""

    def build() -> nn.Module:
        return copied(original.model, lambda name, tensor, parameter: tensor.clone())[0]

    return Pruned(bough.load(checkpoint, build, original.inputs), load_plan(checkpoint))


def _built(reference: str) -> tuple[nn.Module, Any]:
    found = find(reference)
    made = found if isinstance(found, nn.Module) else call(reference)
    if isinstance(made, tuple) and len(made) != 2:
        raise ModelReferenceError(f"{reference} returned {len(made)} things: the model is wanted, or (model, example inputs)")
    model, inputs = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference} returned {type(model).__name__}, not an nn.Module")
    return model, inputs
