"""`export`: a model as a file that another runtime runs, checked by running it."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bough.arguments import check_arguments
from bough.calls import FORWARD
from bough.errors import ExportError, WriteError
from bough.exporting.artifact import ArtifactRun, Exported, run_artifact
from bough.exporting.constant_decisions import Replay, readings
from bough.exporting.dynamic import DynamicDims, dynamic_dims, named_shapes, resized, specification
from bough.exporting.embedded import EmbeddedExport, export_embedded
from bough.exporting.flat import FlatModel, one_call
from bough.exporting.onnx_file import require_onnx, write_onnx
from bough.exporting.pte_file import require_executorch, write_pte
from bough.exporting.quantized_program import is_quantized, output_ranges
from bough.exporting.tflite_file import require_litert, write_tflite
from bough.measuring import eval_mode, largest_error, signal_to_noise
from bough.quantization import Quantized
from bough.storage import write_files
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.wrapped import unwrap

FORMATS = ("onnx", "pte", "tflite")
TARGETS = ("cortex-m",)
TOLERANCE = 1e-4
INT8_TOLERANCE = 0.05  # a runtime rounds in integers where the program rounds in float: a step of INT8 here and there
INT8_RATIO = 20.0  # dB; over many layers these steps add up in single values, which then may differ by more
_REPEATS = 30


def export(
    model: nn.Module | Quantized,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = False,
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None,
    more_inputs: Iterable[Any] = (),
    tolerance: float | None = None,
    repeats: int = _REPEATS,
    overwrite: bool = False,
    target: str | None = None,
    data: Iterable[Any] | None = None,
) -> Exported | EmbeddedExport:
    """Write a model as an ONNX file (`path` ends in .onnx), an ExecuTorch file (.pte) or a LiteRT file (.tflite), after running
    it against the model; or, with target="cortex-m", as a folder of C for microcontrollers.

    The file is run in a process of its own, by onnxruntime, ExecuTorch or LiteRT, on the example inputs; it is put in its place
    only if its outputs are those of the model in eval mode. Caches, dicts and dataclasses become named tensors, such as
    "past_key_values.layers.0.keys".

    Args:
        model: what `prune`, `cut`, `load`, `refit` or a loop of your own gave, or what `quantize` gave, for a file in INT8; it
            stays as it is.
        example_inputs: as for `trace`.
        path: the file; its ending is the format.
        dynamic_batch: the batch, dim 0 of every input that has the size of the first input's dim 0, may vary. The file is
            checked at two sizes more.
        dynamic_shapes: further dims that may vary: {input name: {dim: name of the size}}.
        more_inputs: further inputs, structured as the example inputs and of other sizes where dims may vary, that the file is
            checked with.
        tolerance: the largest `Exported.error` that is accepted; unless given 1e-4, and in INT8, where runtimes round in
            integers, 0.05, or any error at a signal to noise of 20 dB, which a note then says.
        repeats: timed runs at most; they end after two seconds.
        overwrite: replace a file that is there; a folder only if an export wrote it.
        target: None for a file; "cortex-m" for C in int8 arithmetic with recorded test vectors, see `export_embedded`.
        data: batches of real inputs, for C only: they decide scales and zero points that the model does not have.

    Raises:
        ExportError: a package is not installed, the model can not be written in this format, or the file's outputs differ
            from the model's. No file is left.
        WriteError: the file can not be written, or is there already.

    Example:
        >>> import tempfile, torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = bough.export(net, torch.randn(1, 4), f"{folder}/net.onnx")
        >>> made.error <= 1e-4, made.inputs
        (True, {'input': [1, 4]})
    """
    check_arguments(export, locals())
    if target is not None:
        refused = {
            "dynamic_batch": dynamic_batch,
            "dynamic_shapes": dynamic_shapes,
            "more_inputs": more_inputs,
            "tolerance": tolerance,
        }
        return _as_c(model, example_inputs, path, target, data, overwrite, [name for name, given in refused.items() if given])
    if data is not None:
        raise ExportError("export(data=...) is for C alone: give target='cortex-m', or quantize with this data first")
    place = _place(path, overwrite)
    inner = unwrap(model.model if isinstance(model, Quantized) else model)
    precision = "int8" if is_quantized(inner) else "float"
    limit = (INT8_TOLERANCE if precision == "int8" else TOLERANCE) if tolerance is None else tolerance
    ratio = INT8_RATIO if precision == "int8" and tolerance is None else math.inf
    if not limit >= 0 or repeats < 0:
        raise ExportError(f"export(tolerance={tolerance}, repeats={repeats}): neither may be negative")
    with eval_mode(inner), unchanged_rng():
        flat = FlatModel(inner, example_inputs)
        examples = flat.examples
        _require_readable(flat, examples)
        dims = dynamic_dims(flat.input_names, examples, dynamic_batch, dynamic_shapes)
        job = _Job(flat, examples, dims, [flat.flatten(x) for x in more_inputs], limit, ratio, repeats, precision)
        return _written(job, place)


def _as_c(
    model: nn.Module | Quantized, example_inputs: Any, path: str | os.PathLike[str], target: str, data: Iterable[Any] | None,
    overwrite: bool, refused: list[str],
) -> EmbeddedExport:  # fmt: skip
    """Write a folder of C, from a quantized program or, by ranges on data, from a float model."""
    _require_target(path, target)
    if refused:
        raise ExportError(f"export({refused[0]}=...) is for files; the shapes of C are those of example_inputs: leave it out")
    call = one_call(example_inputs)
    if call.method != FORWARD:
        raise ExportError(f"export(target={target!r}) writes forward, and example_inputs call {call.method!r}: wrap the method")
    inner = model.model if isinstance(model, Quantized) else unwrap(model)
    return export_embedded(inner, (call.args, call.kwargs), Path(path), data=data, overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class _Job:
    """What to write and how to check it.

    Attributes:
        more: further inputs to check with.
        tolerance: largest error that is accepted.
        ratio: signal to noise in dB at which larger errors are accepted.
    """

    flat: FlatModel
    examples: tuple[Tensor, ...]
    dims: DynamicDims
    more: list[tuple[Tensor, ...]]
    tolerance: float
    ratio: float
    repeats: int
    precision: str


def require_format(path: str | os.PathLike[str], target: str | None = None) -> None:
    """Raise an ExportError unless the ending of a path, or the target, is a format whose packages are installed.

    Args:
        path, target: as for `export`.

    Raises:
        ExportError: an unknown ending or target, or a package is not installed.

    Example:
        >>> require_format("model.txt")
        Traceback (most recent call last):
        ...
        bough.errors.ExportError: export(path='model.txt'): the file must end in .onnx or .pte or .tflite
    """
    kind = Path(path).suffix.removeprefix(".")
    if target is not None:
        _require_target(path, target)
    elif kind not in FORMATS:
        raise ExportError(f"export(path={str(path)!r}): the file must end in {' or '.join('.' + f for f in FORMATS)}")
    else:
        {"onnx": require_onnx, "pte": require_executorch, "tflite": require_litert}[kind]()


def _require_target(path: str | os.PathLike[str], target: str) -> None:
    if target not in TARGETS:
        raise ExportError(f"export(target={target!r}): use {' or '.join(map(repr, TARGETS))}, or None for a file")
    if Path(path).suffix.removeprefix(".") in FORMATS:
        raise ExportError(f"export(path={str(path)!r}): target={target!r} writes a folder; give a path without that ending")


def _place(path: str | os.PathLike[str], overwrite: bool) -> Path:
    place = Path(path)
    require_format(place)
    if not place.parent.is_dir():
        raise WriteError(f"{place} can not be written: there is no folder {place.parent}")
    if place.exists() and (not overwrite or place.is_dir()):
        raise WriteError(f"{place} is there already: give another path, or export(..., overwrite=True)")
    return place


def _written(job: _Job, place: Path) -> Exported:
    """Write into a folder of its own beside the place, check, and move to the place."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        folder = Path(tempfile.mkdtemp(prefix=".bough-", dir=place.parent))
    except OSError as error:
        raise WriteError(f"{place} can not be written: {error.strerror}") from error
    try:
        file = folder / place.name
        expected = _expected(job)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention lays its output out otherwise than what it is taken apart into
            notes = _write(job, file)
        first, largest, ratio, outputs = _checked(job, file, expected)
        if largest > job.tolerance:
            notes = (
                *notes,
                f"single values differ by up to {largest:.1%} from the quantized program, by rounding; {ratio:.1f} dB",
            )
        made = sorted(folder.iterdir(), key=lambda p: p == file)  # weights that lie beside it come first
        size = sum(p.stat().st_size for p in made)
        write_files([(place.parent / p.name, _mover(p)) for p in made])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    inputs = _shapes(job.flat.input_names, job.examples, job.dims)
    return Exported(
        place, place.suffix[1:], job.precision, size, largest, ratio, first.latency, first.peak_memory, inputs, outputs, notes
    )  # fmt: skip


def _expected(job: _Job) -> dict[str, Tensor]:
    """Return the model's own outputs for the example inputs.

    Raises:
        ExportError: the model can not be run on them, such as a quantized program of another model.
    """
    try:
        return job.flat.run(job.examples)
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(job.flat.input_names, job.examples, strict=True))
        raise ExportError(
            f"{_name_of(job)} can not be run on the example inputs ({shapes}): {type(error).__name__}: {error}; give inputs of "
            "this model"
        ) from error


def _write(job: _Job, file: Path) -> tuple[str, ...]:
    """Write the file in the format of its ending, and return notes."""
    if file.suffix == ".tflite":
        write_tflite(job.flat, job.examples, job.dims, file)
        return ()
    program = _program(job)
    if file.suffix == ".pte":
        return write_pte(program, job.flat, file)
    write_onnx(program, job.flat, job.dims, file)
    return ()


def _program(job: _Job) -> ExportedProgram:
    """Return the flat model as an exported program whose dims may vary where they should.

    Raises:
        ExportError: torch.export can not make one, or the model's Python fixes a dim that should vary.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # imports sympy

    flat, dims = job.flat, job.dims
    examples = resized(flat.input_names, job.examples, dims)

    def exported() -> ExportedProgram:
        return torch.export.export(flat, examples, dynamic_shapes=specification(flat.input_names, dims), strict=False)

    try:
        try:
            return exported()
        except GuardOnDataDependentSymNode:
            if dims and not _others(job):
                raise  # what is read may depend on sizes, and the file is checked at one size alone
            with Replay(readings(flat, examples)):
                return exported()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = next((line for line in lines if line.startswith("-") or "dim" in line.lower()), lines[0] if lines else "")
        asked = f" with dims that vary ({', '.join(dims)})" if dims else ""
        raise ExportError(
            f"torch.export can not make a program of {type(flat.model).__name__}{asked}: {type(error).__name__}: {cause[:400]}"
        ) from error


def _checked(
    job: _Job, file: Path, expected: Mapping[str, Tensor]
) -> tuple[ArtifactRun, float, float, dict[str, list[int | str]]]:
    """Run the file on all inputs; return the first run, the largest error, the least signal to noise, and the output shapes.

    Raises:
        ExportError: an output differs from the model's by more than the tolerance.
    """
    flat = job.flat
    others = _others(job)
    first = _run(flat, file, job.examples, job.repeats)
    pairs = [(expected, first.outputs), *((flat.run(x), _run(flat, file, x, 0).outputs) for x in others)]
    ranges = output_ranges(flat.model, flat.output_names)
    errors = [largest_error(wanted, found, ranges) for wanted, found in pairs]
    ratio = min(signal_to_noise(wanted, found) for wanted, found in pairs)
    if not (max(errors) <= job.tolerance or ratio >= job.ratio):
        at = errors.index(max(errors))
        which = "the example inputs" if at == 0 else f"inputs {', '.join(str(list(t.shape)) for t in others[at - 1])}"
        raise ExportError(
            f"{file.name} gives other outputs than {_name_of(job)}: on {which} the largest difference is "
            f"{max(errors):.2e} of the output's range, and tolerance={job.tolerance:g}; nothing is written"
        )
    runs = [(inputs, wanted) for inputs, (wanted, _) in zip([job.examples, *others], pairs, strict=True)]
    return first, max(errors), ratio, named_shapes(flat.input_names, job.dims, runs)


def _others(job: _Job) -> list[tuple[Tensor, ...]]:
    """Return further inputs to check with: those given, or two other sizes of the batch where that alone varies."""
    if not job.more and job.dims and all(list(d.values()) == ["batch"] for d in job.dims.values()):
        return [resized(job.flat.input_names, job.examples, job.dims, size) for size in (1, 3)]
    return job.more


def _name_of(job: _Job) -> str:
    return "the quantized program" if job.precision == "int8" else type(job.flat.model).__name__


def _run(flat: FlatModel, file: Path, tensors: tuple[Tensor, ...], repeats: int) -> ArtifactRun:
    run = run_artifact(file, dict(zip(flat.input_names, tensors, strict=True)), repeats=repeats)
    if file.suffix == ".onnx":
        return run
    named = dict(zip(flat.output_names, run.outputs.values(), strict=True))
    return ArtifactRun(named, run.latency, run.peak_memory)


def _require_readable(flat: FlatModel, examples: tuple[Tensor, ...]) -> None:
    for name, tensor in zip(flat.input_names, examples, strict=True):
        if tensor.device.type == "meta":
            raise ExportError(f"the input {name} is on the meta device: the file is checked on real values")
    empty = next((n for n, p in flat.model.named_parameters() if p.device.type == "meta"), None)
    if empty is not None:
        raise ExportError(f"{empty} is on the meta device and has no values to write: load the weights first")


def _shapes(names: tuple[str, ...], tensors: tuple[Tensor, ...], dims: DynamicDims) -> dict[str, list[int | str]]:
    return {
        name: [dims.get(name, {}).get(d, size) for d, size in enumerate(t.shape)]
        for name, t in zip(names, tensors, strict=True)
    }


def _mover(source: Path) -> Any:
    return lambda part: os.replace(source, part)
