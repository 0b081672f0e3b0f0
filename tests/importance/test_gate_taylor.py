"""Gradients of gates on units: `GateTaylor` against autograd with the gates written into the model, for every op that reads."""

import numpy as np
import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize

UNITS, SAMPLES, STEPS = 6, 5, 4


def weights(*shapes):
    return nn.ParameterList(nn.Parameter(torch.randn(s)) for s in shapes)


def rows(h, f):
    return torch.stack([f(x) for x in h.flatten(0, -2)]).unflatten(0, h.shape[:-1])


def packed(net, h):
    lengths = [STEPS] * len(h)
    return net(nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True))[0].data


def steps(cell, h):
    state, found = None, []
    for x in h.unbind(1):
        state = cell(x, state)
        found.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(found, 1)


READERS = {  # name: (modules or parameters, what reads the units of h [samples, STEPS, UNITS])
    "linear": (lambda: nn.Linear(UNITS, 3), lambda m, h: m(h)),
    "lstm": (lambda: nn.LSTM(UNITS, 3, batch_first=True), lambda m, h: m(h)[0]),
    "lstm of two layers": (
        lambda: nn.LSTM(UNITS, 3, 2, batch_first=True, bidirectional=True, bias=False),
        lambda m, h: m(h)[1][1].transpose(0, 1),
    ),
    "projected lstm": (lambda: nn.LSTM(UNITS, 4, batch_first=True, proj_size=2), lambda m, h: m(h)[0]),
    "lstm of packed rows": (lambda: nn.LSTM(UNITS, 3, batch_first=True), packed),
    "gru": (lambda: nn.GRU(UNITS, 3, batch_first=True), lambda m, h: m(h)[0]),
    "gru of packed rows": (lambda: nn.GRU(UNITS, 3, 2, batch_first=True), packed),
    "rnn": (lambda: nn.RNN(UNITS, 3, batch_first=True), lambda m, h: m(h)[0]),
    "rnn of relu": (lambda: nn.RNN(UNITS, 3, nonlinearity="relu", batch_first=True), lambda m, h: m(h)[0]),
    "lstm cell": (lambda: nn.LSTMCell(UNITS, 3), steps),
    "gru cell": (lambda: nn.GRUCell(UNITS, 3), steps),
    "rnn cell": (lambda: nn.RNNCell(UNITS, 3, nonlinearity="relu"), steps),
    "bilinear": (
        lambda: nn.Bilinear(UNITS, 4, 3),
        lambda m, h: m(h, h.new_ones(1).expand(*h.shape[:-1], 4).contiguous() * 0.3),
    ),
    "second of a bilinear": (lambda: nn.Bilinear(2, UNITS, 3), lambda m, h: m(h.new_full((*h.shape[:-1], 2), 0.3), h)),
    "addmv": (lambda: weights((3,), (3, UNITS)), lambda w, h: rows(h, lambda x: torch.addmv(w[0], w[1], x))),
    "mv": (lambda: weights((3, UNITS)), lambda w, h: rows(h, lambda x: w[0].mv(x))),
    "addmm": (lambda: weights((3,), (UNITS, 3)), lambda w, h: rows(h, lambda x: torch.addmm(w[0], x[None], w[1])[0])),
    "addbmm": (lambda: weights((STEPS, 3), (STEPS, UNITS, 3)), lambda w, h: torch.addbmm(w[0][:1], h.transpose(0, 1), w[1])),
    "baddbmm": (lambda: weights((3,), (UNITS, 3)), lambda w, h: torch.baddbmm(w[0], h, w[1].expand(len(h), UNITS, 3))),
    "matmul": (lambda: weights((UNITS, 3)), lambda w, h: h @ w[0]),
    "einsum": (lambda: weights((UNITS, 3)), lambda w, h: torch.einsum("stu,uo->sto", h, w[0])),
    "convolution": (lambda: nn.Conv1d(UNITS, 3, 2), lambda m, h: m(h.transpose(1, 2))),
    "transposed convolution": (lambda: nn.ConvTranspose1d(UNITS, 3, 2), lambda m, h: m(h.transpose(1, 2))),
    "convolution over time first": (
        lambda: weights((2, UNITS, 3), (3,)),
        lambda w, h: torch.conv_tbc(h.transpose(0, 1), w[0], w[1]),
    ),
}


class Net(nn.Module):
    """Units made by a linear layer, read by one op."""

    def __init__(self, make, read):
        super().__init__()
        self.enter, self.reader, self.read = nn.Linear(4, UNITS), make(), read

    def forward(self, x, gate=None):
        h = self.enter(x).tanh()
        return self.read(self.reader, h if gate is None else h * gate)


def loss(model, batch, gate=None):
    y = model(batch) if gate is None else model(batch, gate)
    return (y * torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y).sin()).sum() + y.square().sum()


def through_gates(model, data, units):
    """The mean over samples of |dL/dm| at m = 1."""
    found = []
    for x in data:
        gate = torch.ones(units, dtype=x.dtype, requires_grad=True)
        found.append(torch.autograd.grad(loss(model, x[None], gate), gate)[0].abs())
    return torch.stack(found).mean(0).numpy()


@pytest.mark.parametrize("name", READERS)
def test_units_that_an_op_reads(name):
    torch.manual_seed(0)
    net = randomize(Net(*READERS[name])).eval()
    data = torch.randn(SAMPLES, STEPS, 4, dtype=torch.float64)
    graph = bough.trace(net, data[:1])
    (group,) = [g for g in graph.groups if any((m.name, m.dim) == ("enter.weight", 0) for m in g.members)]
    scores = bough.score(graph, bough.importance.GateTaylor(loss), [data])[group.name]
    np.testing.assert_allclose(scores, through_gates(net, data, UNITS), rtol=1e-9, atol=1e-12)
    fisher = bough.score(graph, bough.importance.Fisher(loss), [data])[group.name]
    assert fisher.shape == (UNITS,)
    assert group.readers >= 1


class Recurrent(nn.Module):
    """Hidden units that a recurrence and a linear layer read; with gates, step by step."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.leave = kind(4, UNITS, batch_first=True), nn.Linear(UNITS, 3)

    def forward(self, x, gate=None):
        if gate is None:
            return self.leave(self.layer(x)[0])
        w = [*self.layer.parameters()]
        h = x.new_zeros(len(x), UNITS)
        c, found = h, []
        for step in x.unbind(1):
            if isinstance(self.layer, nn.LSTM):
                h, c = torch.lstm_cell(step, (h, c), *w)
            else:
                h = torch.gru_cell(step, h, *w) if isinstance(self.layer, nn.GRU) else torch.rnn_tanh_cell(step, h, *w)
            found.append(h * gate)
            h = h * gate if not isinstance(self.layer, nn.GRU) else h
        return self.leave(torch.stack(found, 1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_units_of_a_recurrence(kind):
    torch.manual_seed(0)
    net = randomize(Recurrent(kind)).eval()
    data = torch.randn(SAMPLES, STEPS, 4, dtype=torch.float64)
    graph = bough.trace(net, data[:1])
    (group,) = graph.groups
    scores = bough.score(graph, bough.importance.GateTaylor(loss), [data])[group.name]
    np.testing.assert_allclose(scores, through_gates(net, data, UNITS), rtol=1e-9, atol=1e-12)
    assert group.readers == 2
