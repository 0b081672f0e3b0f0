"""Recurrent nets as people write them: name -> () -> (model, example inputs)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, unpad_sequence


class Translator(nn.Module):
    """Encoder and decoder with teacher forcing: the states are handed on, the outputs attended to."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any):
        super().__init__()
        self.source, self.target = nn.Embedding(20, 8), nn.Embedding(20, 10)
        self.encoder, self.decoder = (kind(n, 6, batch_first=True, **options) for n in (8, 10))
        self.join, self.head = nn.Linear(12, 10), nn.Linear(10, 20)

    def forward(self, source, target):
        memory, states = self.encoder(self.source(source))
        out, _ = self.decoder(self.target(target), states)
        weights = (out @ memory.transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.join(torch.cat((out, weights @ memory), -1))))


class Aligner(nn.Module):
    """Additive attention: a loop over a cell that begins at the joined last states of both directions."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(20, 8), nn.GRU(8, 6, bidirectional=True, batch_first=True)
        self.bridge, self.cell = nn.Linear(12, 8), nn.GRUCell(8 + 12, 8)
        self.query, self.key, self.score = nn.Linear(8, 10), nn.Linear(12, 10), nn.Linear(10, 1)
        self.head = nn.Linear(8 + 12, 20)

    def forward(self, source, target):
        memory, last = self.encoder(self.embed(source))
        hidden, out = torch.tanh(self.bridge(torch.cat((last[0], last[1]), -1))), []
        for token in target.unbind(1):
            weights = self.score(torch.tanh(self.query(hidden)[:, None] + self.key(memory))).softmax(1)
            context = (weights * memory).sum(1)
            hidden = self.cell(torch.cat((self.embed(token), context), -1), hidden)
            out.append(self.head(torch.cat((hidden, context), -1)))
        return torch.stack(out, 1)


class Cells(nn.Module):
    """Two cells on top of each other; the first begins at zeros of its own width, the second at its default."""

    def __init__(self, kind: type[nn.RNNCellBase], **options: Any):
        super().__init__()
        self.embed, self.head, self.pairs = nn.Linear(5, 8), nn.Linear(4, 3), kind is nn.LSTMCell
        self.low, self.high = kind(8, 6, **options), kind(6, 4, **options)

    def forward(self, x):
        zeros = x.new_zeros(len(x), self.low.hidden_size)
        low, high = (zeros, zeros) if self.pairs else zeros, None
        for token in F.relu(self.embed(x)).unbind(1):
            low = self.low(token, low)
            high = self.high(low[0] if self.pairs else low, high)
        return self.head(high[0] if self.pairs else high)


class Residual(nn.Module):
    """Layers in both directions whose joined outputs are added to the stream."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(kind(8, 4, bidirectional=True, batch_first=True) for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(self.norm(x))[0]
        return self.head(x)


class Reader(nn.Module):
    """Convolutions whose columns are read by a stack of two layers, as for text in images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(12, 5)
        self.rnn = nn.LSTM(8 * 4, 6, num_layers=2, bidirectional=True, dropout=0.1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(self.rnn(x.flatten(1, 2).permute(2, 0, 1))[0]).log_softmax(-1)


class Sentences(nn.Module):
    """Sentences of different lengths, packed as a list and taken apart again."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 8), nn.GRU(8, 6, num_layers=2), nn.Linear(6, 3)

    def forward(self, *sentences: Tensor):
        packed, last = self.rnn(pack_sequence([self.embed(s) for s in sentences], enforce_sorted=False))
        parts = unpad_sequence(*pad_packed_sequence(packed))
        return self.head(torch.stack([p.mean(0) for p in parts])), self.head(last[-1])


class Lengths(nn.Module):
    """Lengths that are given, or counted from what is no padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8, padding_idx=0), nn.Linear(12, 3)
        self.rnn = nn.LSTM(8, 6, bidirectional=True)

    def forward(self, ids: Tensor, lengths: Tensor | None = None):
        lengths = (ids > 0).sum(1) if lengths is None else lengths
        packed, (last, _) = self.rnn(pack_padded_sequence(self.embed(ids), lengths.cpu(), True, False))
        padded, _ = pad_packed_sequence(packed, True, total_length=8)
        return self.head(torch.cat((last[0], last[1]), -1)), self.head(padded.amax(1))


class Writer(nn.Module):
    """A language model one token at a time, its states carried along, its embedding tied to its head."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        states, out = None, []
        for t in range(ids.shape[1]):
            hidden, states = self.rnn(self.embed(ids[:, t : t + 1]), states)
            out.append(self.head(hidden))
        return torch.cat(out, 1)


class Given(nn.Module):
    """First states that are inputs of the model, and last ones that it returns."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(5, 8), nn.LSTM(8, 6), nn.Linear(6, 3)

    def forward(self, x, hidden, cells):
        out, states = self.rnn(self.embed(x), (hidden, cells))
        return self.head(out), states


def _ids(*shape: int) -> Tensor:
    return torch.randint(1, 20, shape)


def _pair() -> tuple[Tensor, Tensor]:
    return _ids(2, 5), _ids(2, 4)


def _padded() -> Tensor:
    ids = _ids(3, 6)
    ids[0, 2:] = ids[2, 3:] = 0
    return ids


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "translator_gru": lambda: (Translator(nn.GRU), _pair()),
    "translator_lstm": lambda: (Translator(nn.LSTM, num_layers=2), _pair()),
    "translator_rnn": lambda: (Translator(nn.RNN), _pair()),
    "aligner": lambda: (Aligner(), _pair()),
    "cells_lstm": lambda: (Cells(nn.LSTMCell), torch.randn(2, 6, 5)),
    "cells_gru": lambda: (Cells(nn.GRUCell, bias=False), torch.randn(2, 6, 5)),
    "cells_tanh": lambda: (Cells(nn.RNNCell), torch.randn(2, 6, 5)),
    "cells_relu": lambda: (Cells(nn.RNNCell, nonlinearity="relu"), torch.randn(2, 6, 5)),
    "residual_lstm": lambda: (Residual(nn.LSTM), torch.randn(2, 6, 5)),
    "residual_gru": lambda: (Residual(nn.GRU), torch.randn(2, 6, 5)),
    "reader": lambda: (Reader(), torch.randn(2, 1, 8, 10)),
    "sentences": lambda: (Sentences(), (_ids(3), _ids(5), _ids(2))),
    "lengths_given": lambda: (Lengths(), (_padded(), torch.tensor([2, 6, 3]))),
    "lengths_counted": lambda: (Lengths(), _padded()),
    "writer": lambda: (Writer(), _ids(2, 5)),
}
