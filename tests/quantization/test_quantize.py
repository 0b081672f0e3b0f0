"""Quantized programs are near the float model, and say how near."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.errors import QuantizationError
from bough.quantization.ranges import OBSERVERS, Histogram, Range, choose_range
from tests.exporting.models import convolutional

pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")


def batches(count=4, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator) * 2 + 1 for _ in range(count)]


def trained(model):
    """Batch norms with statistics of the data."""
    torch.manual_seed(0)
    model.train()
    for _ in range(3):
        for x in batches():
            model(x)
    return model.eval()


@pytest.fixture(scope="module")
def quantized():
    model = trained(convolutional())
    return model, bough.quantize(model, torch.zeros(1, 3, 8, 8), batches())


def test_the_best_of_what_was_tried_is_near_the_model(quantized):
    model, done = quantized
    assert done.signal_to_noise == pytest.approx(max(done.trials.values()), abs=0.5)
    assert done.signal_to_noise > 25
    assert set(OBSERVERS) <= done.trials.keys()
    assert done.size < 0.3 * done.float_size
    x = batches(seed=1)[0]
    with torch.no_grad():
        error = (done.model(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 0.2
    assert str(done).startswith("4 of 4 layers in INT8")


def test_the_model_stays_as_it_was():
    model = trained(convolutional()).train()
    before = copy.deepcopy(model.state_dict())
    bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), observer="minmax", equalize=False, correct_bias=False)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_dropout_and_batch_norm_do_nothing_in_training():
    """Neither mode changes what a program computes, so torchao's rewriting of dropout and batch norms is not needed."""

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(3, eps=0.25, momentum=0.7), nn.Conv2d(3, 4, 1)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return self.drop(self.linear(self.norm(x)))

    model = trained(Alone())
    done = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), observer="minmax", equalize=False, correct_bias=False)
    before = copy.deepcopy(done.simulated.state_dict())
    x = batches(1, seed=2)[0]
    with torch.no_grad():
        outputs = [
            program(x) for program in (done.simulated.train(), done.simulated.eval(), done.model.train(), done.model.eval())
        ]
    for found in outputs:
        assert torch.allclose(found, outputs[0], atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in done.simulated.state_dict().items())
    assert done.signal_to_noise > 20


def test_each_layer_has_its_errors(quantized):
    _, done = quantized
    assert [layer.module for layer in done.layers] == ["0", "3", "6", "10"]
    for layer in done.layers:
        assert layer.precision == "int8"
        assert 20 < layer.total <= layer.local + 3
    assert all(math.isfinite(x["local"]) for x in done.to_dict()["layers"])


class Outlier(nn.Module):
    """The second layer's inputs have a channel a thousand times as large as the others, which its weights do not read."""

    def __init__(self):
        super().__init__()
        self.first, self.hurt, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.hurt.weight[:, 0] *= 1e-5

    def forward(self, x):
        return self.last(torch.tanh(self.hurt(self.first(x))))


def test_mixed_keeps_the_layer_that_hurts_in_float():
    torch.manual_seed(1)
    model = Outlier().eval()
    options = {"observer": "minmax", "equalize": False, "correct_bias": False}
    whole = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), **options)
    assert whole.signal_to_noise < 10
    done = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), mixed="20 dB", **options)
    assert done.signal_to_noise >= 20
    assert "hurt" in done.notes[0]
    assert len(done.kept_in_float) < 3
    x = batches()[3]
    near = lambda m: -float((m(x) - model(x)).abs().mean())  # noqa: E731
    by_metric = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), mixed=0.05, evaluate=near, **options)
    assert by_metric.float_metric - by_metric.metric <= 0.05
    with pytest.raises(
        QuantizationError, match=r"does not hold even with one layer in INT8, \w+, which gives [\d.]+ dB of 200 dB"
    ):
        bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), mixed="200 dB", **options)


def test_equalization_helps_where_channels_differ_and_computes_the_same():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        scale = torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)
        model[0].weight *= scale
        model[0].bias *= scale.flatten()
        model[2].weight /= scale.view(1, -1, 1, 1)
    options = {"observer": "minmax", "correct_bias": False}
    plain = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), equalize=False, **options)
    done = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), **options)
    assert done.equalized == 1
    assert done.signal_to_noise > plain.signal_to_noise + 15


def test_a_product_of_activations_and_a_shared_layer():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.norm(x)
            return (self.q(y) @ self.k(y).transpose(1, 2)).softmax(-1) @ self.q(y)

    torch.manual_seed(0)
    data = [torch.randn(4, 5, 8) for _ in range(3)]
    done = bough.quantize(Attends().eval(), torch.zeros(1, 5, 8), data)
    assert {layer.op for layer in done.layers} == {"aten.linear.default", "aten.matmul.default"}
    assert done.signal_to_noise > 20


def test_a_one_shot_iterator_and_a_fixed_batch():
    model = trained(convolutional())
    options = {"observer": "minmax", "equalize": False, "correct_bias": False}
    a = bough.quantize(model, torch.zeros(1, 3, 8, 8), iter(batches(2)), **options)
    b = bough.quantize(model, torch.zeros(1, 3, 8, 8), [(x, torch.zeros(16)) for x in batches(2)], **options)
    assert a.signal_to_noise == b.signal_to_noise


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": nn.ReLU()}, "nothing to quantize"),
        ({"data": []}, "the data gives no batches"),
        ({"data": None}, "data must be"),
        ({"observer": "best"}, "use one of 'minmax', 'percentile', 'mse'"),
        ({"mixed": 0.1}, "give evaluate, or mixed='20 dB'"),
        ({"mixed": "a lot"}, "write a ratio such as '20 dB'"),
        ({"example_inputs": [bough.Call(torch.zeros(1, 4)), bough.Call(torch.zeros(2, 4))]}, "one call"),
        ({"model": "net"}, "model must be"),
    ],
)
def test_wrong_arguments(change, said):
    arguments = {"model": nn.Linear(4, 2), "example_inputs": torch.zeros(1, 4), "data": [torch.zeros(2, 4)], **change}
    with pytest.raises(bough.BoughError, match=said):
        bough.quantize(**arguments)


def test_a_model_that_draws_numbers_is_refused():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x) + torch.rand(1)

    with pytest.raises(QuantizationError, match="draw random numbers"):
        bough.quantize(Draws(), torch.zeros(1, 4), [torch.randn(2, 4)])


@given(parts=st.lists(st.tuples(st.integers(1, 50), st.floats(1e-3, 1e3), st.floats(-1, 1)), min_size=1, max_size=4))
@settings(max_examples=30)
def test_a_histogram_counts_all_values_in_any_order(parts):
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(n, generator=generator) + shift) * scale for n, scale, shift in parts]
    whole, turned, merged = Histogram(), Histogram(), Histogram()
    for t in tensors:
        whole.add(t)
        one = Histogram()
        one.add(t)
        merged = merged.merge(one)
    for t in reversed(tensors):
        turned.add(t)
    every = torch.cat(tensors)
    assert whole.counts.sum() == len(every)
    assert (whole.low, whole.high) == (float(every.min()), float(every.max()))
    for other in (turned, merged):
        assert other.limit == whole.limit
        assert torch.equal(other.counts, whole.counts)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-2, 2))
@settings(max_examples=20)
def test_the_range_of_least_squares_has_the_least_squared_error(scale, shift):
    values = (torch.randn(5000, generator=torch.Generator().manual_seed(1)) + shift) * scale
    values[0] *= 20
    histogram = Histogram()
    histogram.add(values)

    def error(found: Range) -> float:
        step, zero = found.parameters()
        rounded = (torch.fake_quantize_per_tensor_affine(values, step, zero, -128, 127) - values).double()
        return float(rounded.square().sum())

    errors = {observer: error(choose_range(histogram, observer)) for observer in OBSERVERS}
    assert errors["mse"] <= 1.1 * min(errors.values())
    for observer in OBSERVERS:
        found = choose_range(histogram, observer)
        assert min(0.0, float(values.min())) - 1e-6 * scale <= found.low <= 0 <= found.high


PLAIN = {"observer": "minmax", "equalize": False, "correct_bias": False}


class OfOneBatch(nn.Module):
    """A model whose Python fixes a part of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.ones(1, 1, 6)), nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))


def test_a_model_that_fixes_its_batch_is_calibrated_on_pieces_of_the_batches():
    torch.manual_seed(0)
    found = bough.quantize(OfOneBatch().eval(), torch.randn(1, 3, 6), [torch.randn(5, 3, 6) for _ in range(2)], **PLAIN)
    assert found.signal_to_noise > 20
    assert "fixed at 1" in str(found.notes)


def test_data_of_another_shape_is_one_error():
    with pytest.raises(
        QuantizationError, match=r"can not be run on a batch of the data \(\[8, 4, 8, 8\]\).*give batches of the"
    ):
        bough.quantize(convolutional(), torch.randn(1, 3, 8, 8), [torch.randn(8, 4, 8, 8)])
