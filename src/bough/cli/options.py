"""Arguments and options that commands share; those that travel together become one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bough.errors import PlanError
from bough.recovery import Training

Command = Callable[..., None]

Model = Annotated[str, typer.Argument(help="module:callable, timm:NAME, torchvision:NAME or hf:PATH")]
Original = Annotated[str, typer.Argument(help="the original: module:callable, timm:NAME, torchvision:NAME or hf:PATH")]
Checkpoint = Annotated[Path, typer.Option(help="a folder that `bough prune --out` wrote")]
Shape = Annotated[
    list[str] | None,
    typer.Option(help="sizes of the example input, such as 1,3,224,224; given again, each is a call that works after the cut"),
]
WeightsOf = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="a file of MODEL's weights, safetensors or a torch state dict; or random, or pretrained (unless given: pretrained "
        "where timm: and torchvision: have them and they can be fetched)",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(help="a module, parameter or group to leave alone, or a pattern such as 'layer1.*'; may be repeated"),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="cut only units that these modules compute, named as for --ignore; may be repeated"),
]
Tie = Annotated[
    list[str] | None,
    typer.Option(
        help="what to cut alike: 'teacher.*=student.*', or dims of two tensors: 'q_a.weight:0=q_b.weight:0'; may be repeated"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the checkpoint that is in --out")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def training_options(
    *,
    out: Annotated[Path, typer.Option(help="folder for the run and the trained checkpoint; a killed run in it is resumed")],
    epochs: Annotated[int | None, typer.Option(help="passes over the data")] = None,
    lr: Annotated[float | None, typer.Option(help="highest learning rate")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or sgd")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of weights with two dims or more")] = None,
    momentum: Annotated[float | None, typer.Option(help="of sgd")] = None,
    schedule: Annotated[str | None, typer.Option(help="of the learning rate: cosine, linear or constant")] = None,
    warmup: Annotated[float | None, typer.Option(help="the share of all steps in which the learning rate rises")] = None,
    batch_size: Annotated[int | None, typer.Option(help="samples per batch, where the task gives a dataset")] = None,
    accumulate: Annotated[int | None, typer.Option(help="batches per step")] = None,
    clip: Annotated[float | None, typer.Option(help="largest norm of the gradient; inf for any")] = None,
    precision: Annotated[str | None, typer.Option(help="no or bf16")] = None,
    better: Annotated[str | None, typer.Option(help="whether a larger (max) or a smaller (min) metric is better")] = None,
    patience: Annotated[int | None, typer.Option(help="epochs without a better metric before training stops")] = None,
    seed: Annotated[int | None, typer.Option(help="of all that is drawn")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between saved states, besides the ends of epochs")] = None,
    log_every: Annotated[int | None, typer.Option(help="steps between lines of the log")] = None,
) -> Training:
    """Return the options of training; those left out have the defaults of `Training`."""
    return Training(**chosen(
        epochs=epochs, lr=lr, optimizer=optimizer, weight_decay=weight_decay, momentum=momentum, schedule=schedule,
        warmup=warmup, batch_size=batch_size, accumulate=accumulate, clip=clip, precision=precision, better=better,
        patience=patience, seed=seed, save_every=save_every, log_every=log_every, folder=out,
    ))  # fmt: skip


def chosen(**options: Any) -> dict[str, Any]:
    """Return the options that are not None: what the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def ties_of(given: list[str] | None) -> dict[str | tuple[str, int], str | tuple[str, int]] | None:
    """Return what --tie says as the argument `tie` of the API.

    Raises:
        PlanError: an entry is not two places with an equals sign between, or names a place twice on the left.

    Example:
        >>> ties_of(["teacher.*=student.*", "q_a.weight:0=q_b.weight:0"])
        {'teacher.*': 'student.*', ('q_a.weight', 0): ('q_b.weight', 0)}
    """
    found: dict[str | tuple[str, int], str | tuple[str, int]] = {}
    for text in given or ():
        one, sign, other = text.partition("=")
        if not sign or not one or not other or "=" in other:
            raise PlanError(f"--tie {text!r}: write two places, such as --tie 'teacher.*=student.*'")
        if _place(one) in found:
            raise PlanError(f"--tie {text!r}: {one!r} is tied twice; write the second one as --tie '{other}={one}'")
        found[_place(one)] = _place(other)
    return found or None


def _place(text: str) -> str | tuple[str, int]:
    name, sign, dim = text.rpartition(":")
    return (name, int(dim)) if sign and dim.removeprefix("-").isdigit() else text


def given_by(**makers: Callable[..., Any]) -> Callable[[Command], Command]:
    """For a command that takes values of many options each: {its keyword: the function whose parameters are the options}."""

    def decorated(command: Command) -> Command:
        own = {n: p for n, p in _parameters(command) if n not in makers}
        added = {name: dict(_parameters(make)) for name, make in makers.items()}

        def run(**given: Any) -> None:
            made = {name: make(**{n: given.pop(n) for n in added[name]}) for name, make in makers.items()}
            command(**made, **given)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        every = [*own.values(), *(p for options in added.values() for p in options.values())]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in every]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorated


def _parameters(function: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    hints = get_type_hints(function, include_extras=True)
    return [(n, p.replace(annotation=hints[n])) for n, p in inspect.signature(function).parameters.items()]
