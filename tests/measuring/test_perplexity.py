"""Perplexity: each token once, with what comes before it in its window."""

import math

import pytest
import torch
from torch import nn

import bough
from bough.errors import ArgumentError, TraceError


class Sums(nn.Module):
    """Predicts from the sum of all tokens up to the last one, so what a window shows makes a difference."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(1, 7).double()
        self.read = []

    def forward(self, ids):
        self.read.append(tuple(ids.shape))
        return self.out(ids.double().cumsum(1)[..., None] / 10)


def by_hand(model, text, window, stride):
    """Loop over tokens: each is predicted in the first window that has it, unless it is the window's first."""
    losses, seen, begin = [], 0, 0
    while True:
        end = min(begin + window, len(text))
        for i in range(max(seen, begin + 1), end):
            logits = model(text[None, begin:i])[0, -1]
            losses.append(-logits.log_softmax(-1)[text[i]].item())
        seen, begin = end, begin + stride
        if end == len(text):
            return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("length", "window", "stride"), [(23, 5, None), (23, 5, 2), (20, 5, 5), (21, 5, 5), (4, 9, None), (13, 6, 1)]
)
def test_equals_a_loop_over_tokens(length, window, stride, batch_size):
    model = Sums().train()
    text = torch.randint(7, (length,), generator=torch.Generator().manual_seed(1))
    found = bough.perplexity(model, text, window=window, stride=stride, batch_size=batch_size)
    expected = by_hand(model, text, window, stride or window)
    assert (found.perplexity, found.tokens) == (pytest.approx(expected[0], rel=1e-6), expected[1])
    assert model.training
    if stride == 1:
        assert found.tokens == length - 1


def test_windows_are_read_together():
    model = Sums()
    bough.perplexity(model, list(range(7)) * 3, window=5, batch_size=4)
    assert model.read == [(4, 5)]


class Named:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("wrap", [Named, lambda logits: (logits, None)])
def test_logits_are_found_in_outputs(wrap):
    model = Sums()
    plain = bough.perplexity(model, [1, 2, 3, 4], window=4)
    model.register_forward_hook(lambda module, args, output: wrap(output))
    assert bough.perplexity(model, [1, 2, 3, 4], window=4) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window at least 2"), ({"stride": 6, "window": 5}, "stride from 1 to window"),
        ({"batch_size": 0}, "batch_size at least 1"), ({"tokens": [1]}, "at least 2 tokens"),
        ({"model": nn.Embedding(7, 7).double().requires_grad_(False)}, ""),
        ({"model": nn.Sequential(nn.Embedding(7, 7), nn.Flatten())}, "a causal language"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(options, message):
    given = {"model": Sums(), "tokens": [1, 2, 3, 4], **options}
    if message:
        with pytest.raises(TraceError, match=message):
            bough.perplexity(**given)
    else:
        assert bough.perplexity(**given).tokens == 3


def test_a_loss_that_is_not_finite_is_an_error():
    model = Sums()
    nn.init.constant_(model.out.bias, float("nan"))
    with pytest.raises(TraceError, match="the loss of Sums on this text is nan"):
        bough.perplexity(model, [1, 2, 3])
    with pytest.raises(ArgumentError):
        bough.perplexity(model, [1, 2, 3], window="8")
