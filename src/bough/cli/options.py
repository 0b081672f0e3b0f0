"""Arguments and options that commands share; those that travel together become one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bough.errors import CheckpointError
from bough.recovery import Training

Command = Callable[..., None]

Model = Annotated[str, typer.Argument(help="module:callable, timm:NAME, torchvision:NAME or hf:PATH")]
Original = Annotated[str, typer.Argument(help="the original: module:callable, timm:NAME, torchvision:NAME or hf:PATH")]
Checkpoint = Annotated[Path, typer.Option(help="a folder that `bough prune --out` wrote")]
Shape = Annotated[str | None, typer.Option(help="sizes of the example input, such as 1,3,224,224")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def training_options(
    *,
    out: Annotated[Path, typer.Option(help="folder for the run and the trained checkpoint; a killed run in it is resumed")],
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 10,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd")] = "adamw",
    batch_size: Annotated[int, typer.Option(help="samples per batch, where the task gives a dataset")] = 64,
    accumulate: Annotated[int, typer.Option(help="batches per step")] = 1,
    precision: Annotated[str, typer.Option(help="no or bf16")] = "no",
    patience: Annotated[int | None, typer.Option(help="epochs without a better metric before training stops")] = None,
    seed: Annotated[int, typer.Option(help="of all that is drawn")] = 0,
    save_every: Annotated[int | None, typer.Option(help="steps between saved states, besides the ends of epochs")] = None,
) -> Training:
    return Training(
        epochs=epochs, lr=lr, optimizer=optimizer, batch_size=batch_size, accumulate=accumulate, precision=precision,
        patience=patience, seed=seed, save_every=save_every, folder=out,
    )  # fmt: skip


def writable(out: Path | None, *, folder: bool) -> None:
    """Tells before the work is done if its result could not be written.

    Raises:
        CheckpointError: a file stands where a folder is to be made, or there is no folder for a file.
    """
    if out is None:
        return
    if folder and any(p.is_file() for p in (out, *out.parents)):
        raise CheckpointError(f"{out} can not be a folder: there is a file in the way")
    if not folder and (out.is_dir() or not out.parent.is_dir()):
        raise CheckpointError(f"{out} can not be written: {out.parent} is no folder, or {out.name} is one")


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
