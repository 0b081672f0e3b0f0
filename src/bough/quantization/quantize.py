"""`quantize`: post-training quantization to INT8, with what is best for the model chosen by measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, select_inputs
from bough.calls import FORWARD, as_calls
from bough.cutting.program import Inputs
from bough.errors import QuantizationError
from bough.measuring import eval_mode, largest_error, signal_to_noise
from bough.quantization.program import capture, in_pieces, module_of, tensor_of
from bough.quantization.quantized import Quantized, QuantizedLayer
from bough.quantization.ranges import OBSERVERS
from bough.quantization.torchao_import import require_torchao
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.tree import tensors_within
from bough.tracing.capture.wrapped import unwrap

Metric = Callable[[nn.Module], float]
_BATCHES = 64
_GAIN = 0.1  # dB that a method must bring to be used
_SAME = 1e-3  # largest difference of the captured program, as a share of the output's range


def quantize(
    model: nn.Module,
    example_inputs: Any,
    data: Data | Iterable[Any],
    *,
    evaluate: Metric | None = None,
    mixed: float | str | None = None,
    observer: str | None = None,
    equalize: bool | None = None,
    correct_bias: bool | None = None,
    reduce_range: bool = False,
) -> Quantized:
    """Quantize a model to INT8 after training; `model` stays as it is.

    Convolutions, linear layers and products of activations are INT8, with a scale for each output channel of a weight and one
    for each activation, and so is what lies between them. Batch norms are folded first. What is left open is tried, and what
    gives the best ratio of signal to noise on data held back is used.

    Args:
        model: as for `export`; `model` is captured in eval mode.
        example_inputs: as for `trace`.
        data: unlabelled batches, as for `refit`; the first 64 are used. The last quarter of these is held back to measure on.
        evaluate: (model) -> metric, larger is better; called on the float model and on the quantized program.
        mixed: layers are kept in float, those that alone lose the most signal first, until this holds: the largest loss of
            `evaluate`'s metric, as a number, or the smallest signal-to-noise ratio of the outputs, such as "20 dB".
        observer: how ranges of activations are chosen: "minmax", "percentile" or "mse"; None tries all three.
        equalize: move scales between layers (cross-layer equalization; SmoothQuant for layer norms); None tries it.
        correct_bias: make up for the mean error of each channel; None tries it.
        reduce_range: use 7 bits of the weights, for runtimes whose INT8 instructions overflow with 8. onnxruntime on x86
            processors without VNNI is one where weights are signed, so files of `export` have them unsigned.

    Raises:
        QuantizationError: torchao is not installed, nothing in the model can be INT8, `mixed` can not be met, or the program
            does not compute what the model does.
        ExportError: torch.export can not make a program of the model.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> done = bough.quantize(net, torch.randn(1, 4), [torch.randn(32, 4) for _ in range(4)])
        >>> done.signal_to_noise > 10  # dB
        True
    """
    check_arguments(quantize, locals())
    limit = _limit(mixed, evaluate)
    if observer is not None and observer not in OBSERVERS:
        raise QuantizationError(f"quantize(observer={observer!r}): use one of {', '.join(map(repr, OBSERVERS))}")
    require_torchao()
    inner = unwrap(model)
    inputs = _one_call(example_inputs)
    batches = _batches(inner, inputs, as_data(data, "quantize"))
    with eval_mode(inner), unchanged_rng(), torch.no_grad():
        base, notes = capture(inner, inputs)
        if notes:
            batches = in_pieces(batches, inputs)
        held_out = batches[-max(1, len(batches) // 4) :]
        expected = [_outputs(_run(inner, batch)) for batch in held_out]
        _require_same(base, held_out, expected, inner)
        float_metric = None if evaluate is None else float(evaluate(inner))
        search = _Search(base, batches[: len(batches) - len(held_out)] or batches, held_out, expected, reduce_range)
        return search.finish(observer, equalize, correct_bias, limit, evaluate, float_metric, notes)


@dataclass(frozen=True, slots=True)
class _Limit:
    """What must hold: a ratio of signal to noise in dB, or a largest loss of the metric."""

    decibels: float | None = None
    loss: float | None = None

    def said(self, program: nn.Module, ratio: float, evaluate: Metric | None, dense: float | None) -> tuple[bool, str]:
        """Return whether a program holds the limit, and what it gives, in words."""
        if self.decibels is not None:
            return ratio >= self.decibels, f"{ratio:.1f} dB of {self.decibels:g} dB"
        assert evaluate is not None
        assert dense is not None
        lost = dense - float(evaluate(program))
        return lost <= (self.loss or 0.0), f"a loss of {lost:.4g}, at most {self.loss:g}"


@dataclass(frozen=True)
class _Way:
    """One way to quantize and what it gives: the float program, the histograms, the rule, the ratio in dB."""

    base: fx.GraphModule
    histograms: Any
    observer: str
    program: fx.GraphModule
    ratio: float
    equalized: int = 0
    corrected: bool = False


class _Search:
    """Tries ways to quantize a program and keeps the best."""

    def __init__(
        self,
        base: fx.GraphModule,
        batches: list[Inputs],
        held_out: list[Inputs],
        expected: list[list[Tensor]],
        reduce_range: bool,
    ) -> None:
        self.base, self.batches, self.held_out, self.expected = base, batches, held_out, expected
        self.reduce_range = reduce_range
        self.trials: dict[str, float] = {}

    def finish(
        self, observer: str | None, equalize: bool | None, correct: bool | None, limit: _Limit | None,
        evaluate: Metric | None, float_metric: float | None, notes: tuple[str, ...],
    ) -> Quantized:  # fmt: skip
        from bough.quantization.simulation import candidates, converted

        if not candidates(self.base):
            raise QuantizationError("nothing to quantize: no convolution, linear layer or product of activations in float32")
        best = self._best(observer, equalize, correct)
        layers = self._layers(best)
        if limit is not None:
            best, layers, more = self._mixed(best, layers, limit, evaluate, float_metric)
            notes = (*notes, *more)
        made = converted(best.program)
        ratio = self.ratio(made)
        metric = None if evaluate is None else float(evaluate(made))
        return Quantized(
            made, best.program, layers, ratio, best.observer, best.equalized, best.corrected, self.trials, weight_bytes(made),
            weight_bytes(self.base), metric, float_metric, notes,
        )  # fmt: skip

    def _best(self, observer: str | None, equalize: bool | None, correct: bool | None) -> _Way:
        best = self._by_observer(self.base, observer, "")
        if equalize is not False:
            best = self._kept(best, self._equalized(observer), equalize)
        if correct is not False:
            best = self._kept(best, self._corrected(best), correct)
        return best

    def _kept(self, best: _Way, other: _Way | None, asked: bool | None) -> _Way:
        if other is None:
            return best
        return other if asked or other.ratio > best.ratio + _GAIN else best

    def _by_observer(self, base: fx.GraphModule, observer: str | None, title: str, equalized: int = 0) -> _Way:
        from bough.quantization.simulation import histograms_of

        histograms = histograms_of(base, self.batches, reduce_range=self.reduce_range)
        ways = [self._way(base, histograms, o, title, equalized) for o in ([observer] if observer else OBSERVERS)]
        return max(ways, key=lambda way: way.ratio)

    def _way(self, base: fx.GraphModule, histograms: Any, observer: str, title: str, equalized: int, skip: Any = ()) -> _Way:
        from bough.quantization.simulation import simulated

        program = simulated(base, histograms, observer, skip, reduce_range=self.reduce_range)
        ratio = self.ratio(program)
        if not skip:
            self.trials[f"{observer}{title}"] = ratio
        return _Way(base, histograms, observer, program, ratio, equalized)

    def _equalized(self, observer: str | None) -> _Way | None:
        from bough.quantization.equalization import equalize_

        base = copy.deepcopy(self.base)
        pairs = equalize_(base, self.batches)
        return self._by_observer(base, observer, ", equalized", pairs) if pairs else None

    def _corrected(self, best: _Way) -> _Way:
        from bough.quantization.bias import corrected

        base = corrected(best.base, best.program, self.batches[0])
        title = f"{', equalized' * bool(best.equalized)}, biases corrected"
        return replace(self._way(base, best.histograms, best.observer, title, best.equalized), corrected=True)

    def ratio(self, program: nn.Module) -> float:
        """Return the signal-to-noise ratio of a program's outputs on the data held back."""
        pairs = {}
        found = {}
        for i, ((args, kwargs), wanted) in enumerate(zip(self.held_out, self.expected, strict=True)):
            for j, (y, z) in enumerate(zip(wanted, _outputs(program(*args, **kwargs)), strict=True)):
                pairs[f"{i}.{j}"], found[f"{i}.{j}"] = y, z
        return signal_to_noise(pairs, found)

    def _layers(self, way: _Way) -> tuple[QuantizedLayer, ...]:
        """Return the layers with their errors, on one batch."""
        from bough.quantization.simulation import enable, end_of, layers_of, local_output, values_of

        inputs = self.held_out[0]
        enable(way.program, False)
        wanted = values_of(way.program, inputs)
        enable(way.program, True)
        got = values_of(way.program, inputs)
        layers = []
        for node in layers_of(way.program):
            end = end_of(node).name
            alone = local_output(way.program, node, wanted)
            layers.append(
                QuantizedLayer(
                    node.name, module_of(node), str(node.target), _ratio(wanted[end], alone), _ratio(wanted[end], got[end])
                )
            )
        return tuple(layers)

    def _mixed(
        self, best: _Way, layers: tuple[QuantizedLayer, ...], limit: _Limit, evaluate: Metric | None, float_metric: float | None
    ) -> tuple[_Way, tuple[QuantizedLayer, ...], tuple[str, ...]]:
        """Keep the fewest layers in float with which the limit holds, in the order of their local errors, by bisection."""
        order = [layer.name for layer in sorted(layers, key=lambda x: x.local)]

        def way(count: int) -> _Way:
            return best if count == 0 else self._skipping(best, order[:count])

        given = ""

        def holds(tried: _Way) -> bool:
            nonlocal given
            met, given = limit.said(tried.program, tried.ratio, evaluate, float_metric)
            return met

        if holds(best):
            return best, layers, ()
        low, high, found = 0, 1, None
        while high < len(order) and not holds(found := way(high)):
            low, high = high, min(2 * high, len(order))
        if high >= len(order):
            high = len(order) - 1
            found = way(high) if high > low else None
            if found is None or not holds(found):
                raise QuantizationError(
                    f"mixed: the limit does not hold even with one layer in INT8, {order[-1]}, which gives {given}"
                )
        while high - low > 1:
            middle = (low + high) // 2
            tried = way(middle)
            low, high, found = (low, middle, tried) if holds(tried) else (middle, high, found)
        assert found is not None
        kept = set(order[:high])
        marked = tuple(replace(x, precision="float") if x.name in kept else x for x in layers)
        return found, marked, (f"kept in float: {', '.join(x.module or x.name for x in layers if x.name in kept)}",)

    def _skipping(self, best: _Way, skip: list[str]) -> _Way:
        made = self._way(best.base, best.histograms, best.observer, "", best.equalized, skip)
        return replace(made, corrected=best.corrected)


def _run(model: nn.Module, batch: Inputs) -> Any:
    """Return what a model gives for a batch of data.

    Raises:
        QuantizationError: the model can not be run on it.
    """
    args, kwargs = batch
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_within(batch))
        raise QuantizationError(
            f"{type(model).__name__} can not be run on a batch of the data ({shapes}): {type(error).__name__}: {error}; give "
            "batches of the shapes of the example inputs, the first dimension apart"
        ) from error


def _limit(mixed: float | str | None, evaluate: Metric | None) -> _Limit | None:
    if mixed is None:
        return None
    if isinstance(mixed, str):
        number = mixed.strip().removesuffix("dB").strip()
        try:
            return _Limit(decibels=float(number))
        except ValueError:
            raise QuantizationError(f"quantize(mixed={mixed!r}): write a ratio such as '20 dB', or a number") from None
    if evaluate is None:
        raise QuantizationError(f"quantize(mixed={mixed}) is the largest loss of a metric: give evaluate, or mixed='20 dB'")
    return _Limit(loss=float(mixed))


def _one_call(example_inputs: Any) -> Inputs:
    calls = as_calls(example_inputs)
    if len(calls) != 1 or calls[0].method != FORWARD:
        raise QuantizationError("quantize takes one call of the model's forward: give the example inputs of that call")
    return calls[0].args, calls[0].kwargs


def _batches(model: nn.Module, inputs: Inputs, data: Data) -> list[Inputs]:
    """Return the first batches as (args, kwargs)."""
    if data.forward is not None:
        raise QuantizationError("quantize takes batches that are the model's inputs: Data(forward=...) can not be captured")
    args, kwargs = inputs
    found = [select_inputs(model, batch, len(args), tuple(kwargs)) for batch in islice(data.batches, _BATCHES)]
    if not found:
        raise QuantizationError("the data gives no batches")
    return found


def _outputs(value: Any) -> list[Tensor]:
    return [t.detach() for t in tensors_within(value) if t.is_floating_point()]


def _require_same(base: fx.GraphModule, held_out: list[Inputs], expected: list[list[Tensor]], model: nn.Module) -> None:
    """Raise a QuantizationError unless the captured program with folded norms gives what the model gives."""
    (args, kwargs), wanted = held_out[0], expected[0]
    found = _outputs(base(*args, **kwargs))
    error = largest_error(dict(enumerate(wanted)), dict(enumerate(found)))  # type: ignore[arg-type]
    if not error <= _SAME:
        raise QuantizationError(
            f"the program that torch.export made of {type(model).__name__} gives other outputs than the model: the largest "
            f"difference is {error:.1e} of the output's range. Does the model draw random numbers in eval mode, or depend on "
            "the sizes of its inputs?"
        )


def _ratio(expected: Tensor, actual: Tensor) -> float:
    return signal_to_noise({"y": expected}, {"y": actual})


def weight_bytes(program: fx.GraphModule) -> int:
    """Return the bytes of the weights that a program reads; scales and zero points of weights are not counted.

    Args:
        program: as `Quantized.model` is.

    Example:
        >>> import torch, bough
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False)).eval(), torch.randn(64, 4)
        >>> weight_bytes(bough.quantize(net, x[:1], x.split(32)).model)
        32
    """
    weights = [n for n in program.graph.nodes if any("quantize" not in str(u.target) or u.args[0] is n for u in n.users)]
    found = [tensor_of(program, node) for node in weights]
    return sum(t.numel() * t.itemsize for t in {id(t): t for t in found if t is not None}.values())
