"""Options of quantization-aware training, for the commands that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bough.cli.calibration import batches
from bough.cli.options import chosen
from bough.cli.quantize import metric_limit
from bough.errors import ModelReferenceError
from bough.quantization import QAT


@dataclass(frozen=True, slots=True)
class QATOptions:
    """What `--qat` was given: a reference to batches, and options of `QAT`."""

    data: str
    options: dict[str, Any]

    def of(self, example_inputs: Any, *, progress: bool) -> QAT:
        """Return the options of quantization-aware training of a model."""
        return QAT(example_inputs, batches(self.data, progress=progress), **self.options)


def qat_options(
    *,
    qat: Annotated[
        bool, typer.Option("--qat", help="train in INT8 (quantization-aware), from --data; for `bough export --quantized`")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="with --qat: module:callable that returns batches, which choose the initial ranges")
    ] = None,
    mixed: Annotated[
        str | None, typer.Option(help="with --qat: keep layers in float until this holds, as for `bough quantize`")
    ] = None,
    observer: Annotated[str | None, typer.Option(help="with --qat: minmax, percentile or mse ranges; all are tried")] = None,
    equalize: Annotated[bool | None, typer.Option(help="with --qat: move scales between layers; tried unless given")] = None,
    correct_bias: Annotated[
        bool | None, typer.Option(help="with --qat: take back the mean error of channels; tried unless given")
    ] = None,
    reduce_range: Annotated[bool | None, typer.Option("--reduce-range", help="with --qat: use 7 bits of the weights")] = None,
) -> QATOptions | None:
    """Return the options of quantization-aware training; None without --qat."""
    options = chosen(
        mixed=metric_limit(mixed), observer=observer, equalize=equalize, correct_bias=correct_bias, reduce_range=reduce_range
    )
    if not qat:
        given = next(iter([*options, *(["data"] if data is not None else [])]), None)
        if given is not None:
            raise ModelReferenceError(f"--{given.replace('_', '-')} is for --qat: add --qat, or leave it out")
        return None
    if data is None:
        raise ModelReferenceError("--qat needs --data module:callable: batches that choose the initial ranges")
    return QATOptions(data, options)
