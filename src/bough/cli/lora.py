"""Options of low-rank adapters, which the commands that train share."""

from __future__ import annotations

from typing import Annotated

import typer

from bough.cli.options import chosen
from bough.errors import ModelReferenceError
from bough.recovery import LoRA


def lora_options(
    *,
    lora: Annotated[
        bool | None, typer.Option("--lora", help="train low-rank adapters alone, and merge them at the end; needs peft")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="with --lora: the adapters' rank")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="with --lora: the adapters' factor, times the rank")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="with --lora: of the adapters' inputs")] = None,
    lora_targets: Annotated[
        list[str] | None,
        typer.Option(
            help="with --lora: a module or pattern such as '*.q_proj'; all linear layers unless given; may be repeated"
        ),
    ] = None,
) -> LoRA | None:
    """Return the options of low-rank adapters; None without --lora."""
    options = chosen(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets or None)
    if not lora and options:
        raise ModelReferenceError(f"--lora-{next(iter(options))} is for --lora: add --lora, or leave it out")
    return LoRA(**options) if lora else None
