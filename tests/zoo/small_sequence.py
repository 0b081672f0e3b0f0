"""More small nets over sequences, one difficulty each: name -> () -> (model, example inputs)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Recurrent(nn.Module):
    """Two layers; their gates share a layer's hidden units."""

    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool = False, **options: Any):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.rnn = kind(8, 6, num_layers=2, batch_first=True, bidirectional=bidirectional, **options)
        width = options.get("proj_size") or 6
        self.head = nn.Linear(width * (1 + bidirectional), 3)

    def forward(self, x):
        return self.head(self.rnn(F.relu(self.embed(x)))[0][:, -1])


class Packed(Recurrent):
    """Sentences of different lengths."""

    def forward(self, x):
        packed = pack_padded_sequence(F.relu(self.embed(x)), torch.tensor([6, 4]), batch_first=True)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out.mean(1))


class States(nn.Module):
    """Tokens first; the last hidden states of both layers are read, the first ones are learned."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(5, 8), nn.GRU(8, 6, num_layers=2), nn.Linear(12, 3)
        self.first = nn.Parameter(torch.randn(2, 1, 6))

    def forward(self, x):
        _, last = self.rnn(self.embed(x), self.first.repeat(1, x.shape[1], 1))
        return self.head(last.transpose(0, 1).flatten(1))


class Cells(nn.Module):
    """A loop over an LSTM cell."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(5, 8), nn.LSTMCell(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = cell = x.new_zeros(len(x), 6)
        for token in F.relu(self.embed(x)).unbind(1):
            hidden, cell = self.cell(token, (hidden, cell))
        return self.head(hidden)


class EinsumAttention(nn.Module):
    """Heads as an axis of raw parameters, by einsum."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 4, 6)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(4, 6, 12))

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (torch.einsum("bnd,dhk->bhnk", x, w) for w in (self.q, self.k, self.v))
        weights = (torch.einsum("bhnk,bhmk->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return self.head(x + torch.einsum("bhnk,hkd->bnd", torch.einsum("bhnm,bhmk->bhnk", weights, v), self.o))


class WindowedAttention(nn.Module):
    """Shifted windows, fused qkv, a table of relative position biases."""

    def __init__(self):
        super().__init__()
        self.heads, self.window = 3, 2
        self.embed, self.norm, self.head = nn.Conv2d(3, 12, 1), nn.LayerNorm(12), nn.Linear(12, 3)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(9, 3))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]) + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(len(y), 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1) + self.table[self.index].permute(2, 0, 1)
        y = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        y = y.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
        return self.head((x + torch.roll(y, (1, 1), (1, 2))).mean((1, 2)))


class SharedBias(nn.Module):
    """Two layers whose heads share one table of biases by distance."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.bias = nn.Linear(5, 12), nn.Linear(12, 3), nn.Embedding(11, 3)
        self.qkv = nn.ModuleList(nn.Linear(12, 36) for _ in range(2))

    def forward(self, x):
        x, n = self.embed(x), x.shape[1]
        place = torch.arange(n)
        bias = self.bias(place[:, None] - place + n - 1).permute(2, 0, 1)
        for layer in self.qkv:
            q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in layer(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.head(x)


class DenseExperts(nn.Module):
    """Every expert works on every token; a gate weighs them."""

    def __init__(self):
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 10)), nn.Parameter(torch.randn(4, 10, 8))

    def forward(self, x):
        x = self.embed(x)
        inner = F.gelu(torch.einsum("bd,edf->bef", x, self.up))
        return self.head(x + torch.einsum("be,bef,efd->bd", self.gate(x).softmax(-1), inner, self.down))


class RoutedExperts(nn.Module):
    """A loop over experts, each given the tokens that chose it among their best two."""

    def __init__(self):
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)) for _ in range(4))

    def forward(self, x):
        x = self.embed(x)
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
        return self.head(x + out)


@dataclass
class Step:
    logits: Tensor
    cache: tuple[Tensor, Tensor]


class Cached(nn.Module):
    """A step of attention that reads and returns keys and values, as a dataclass."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out, self.head = (
            nn.Embedding(20, 12),
            nn.Linear(12, 48),
            nn.Linear(16, 12),
            nn.Linear(12, 20),
        )

    def forward(self, ids: Tensor, cache: tuple[Tensor, Tensor] | None = None) -> Step:
        x = self.embed(ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return Step(self.head(x + self.out(y)), (k, v))


class TwoSteps(nn.Module):
    """Reads a sentence, then its best next token with the cache."""

    def __init__(self):
        super().__init__()
        self.step = Cached()

    def forward(self, ids):
        first = self.step(ids)
        return self.step(first.logits[:, -1:].argmax(-1), first.cache).logits


class Scan(nn.Module):
    """A selective state space model as a loop over tokens."""

    def __init__(self, inner: int = 12, state: int = 4, rank: int = 2):
        super().__init__()
        self.state, self.rank, self.embed, self.head = state, rank, nn.Linear(5, 8), nn.Linear(8, 3)
        self.inside, self.conv = nn.Linear(8, 2 * inner), nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.x_proj, self.dt_proj = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.a_log, self.d, self.out = (
            nn.Parameter(torch.randn(inner, state)),
            nn.Parameter(torch.ones(inner)),
            nn.Linear(inner, 8),
        )

    def forward(self, x):
        x, n = self.embed(x), x.shape[1]
        y, z = self.inside(x).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., :n]).transpose(1, 2)
        step, b, c = self.x_proj(y).split((self.rank, self.state, self.state), -1)
        step, a = F.softplus(self.dt_proj(step)), -self.a_log.exp()
        hidden, out = y.new_zeros(len(y), y.shape[-1], self.state), []
        for t in range(n):
            moved = (step[:, t] * y[:, t])[..., None] * b[:, t, None]
            hidden = hidden * (step[:, t, :, None] * a).exp() + moved
            out.append((hidden @ c[:, t, :, None]).squeeze(-1))
        y = (torch.stack(out, 1) + y * self.d) * F.silu(z)
        return self.head(x + self.out(y))


class Attends(nn.Module):
    """nn.MultiheadAttention over a memory of other widths, or over itself."""

    def __init__(self, batch_first: bool, kdim: int | None = None, vdim: int | None = None, **options: Any):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.key = nn.Linear(5, kdim) if kdim else self.embed
        self.value = nn.Linear(5, vdim) if vdim else self.embed
        self.attend = nn.MultiheadAttention(12, 3, batch_first=batch_first, kdim=kdim, vdim=vdim, **options)

    def forward(self, x):
        y = self.embed(x)
        return self.head(y + self.attend(y, self.key(x), self.value(x))[0])


class Translator(nn.Module):
    """nn.Transformer with a causal mask, between two embeddings."""

    def __init__(self, **options: Any):
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(20, 12), nn.Embedding(20, 12), nn.Linear(12, 20)
        self.model = nn.Transformer(12, 3, 2, 2, 20, batch_first=True, **options)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        return self.head(self.model(self.source(source), self.target(target), tgt_mask=mask))


class Decoder(nn.Module):
    """nn.TransformerDecoder, norm first, over a memory."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(12, 3, 20, norm_first=True, activation="gelu")
        self.embed, self.memory, self.head = nn.Linear(5, 12), nn.Linear(4, 12), nn.Linear(12, 3)
        self.model = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(12))

    def forward(self, x, memory):
        return self.head(self.model(self.embed(x), self.memory(memory)))


def _of(build: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), torch.randn(shape or (2, 6, 5)))


def _ids(tokens: int) -> Tensor:
    return torch.randint(0, 20, (2, tokens))


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "lstm": _of(lambda: Recurrent(nn.LSTM)),
    "lstm_both_ways": _of(lambda: Recurrent(nn.LSTM, True)),
    "lstm_projected": _of(lambda: Recurrent(nn.LSTM, proj_size=4)),
    "lstm_packed": _of(lambda: Packed(nn.LSTM, True)),
    "gru": _of(lambda: Recurrent(nn.GRU)),
    "gru_states": _of(States),
    "rnn": _of(lambda: Recurrent(nn.RNN, True, nonlinearity="relu")),
    "lstm_cells": _of(Cells),
    "einsum_attention": _of(EinsumAttention),
    "windowed_attention": _of(WindowedAttention, 2, 3, 4, 4),
    "shared_bias": _of(SharedBias),
    "dense_experts": _of(DenseExperts, 7, 5),
    "routed_experts": _of(RoutedExperts, 7, 5),
    "cached_step": lambda: (Cached(), (_ids(3), (torch.randn(2, 4, 5, 4), torch.randn(2, 4, 5, 4)))),
    "cache_returned": lambda: (Cached(), _ids(6)),
    "two_steps": lambda: (TwoSteps(), _ids(6)),
    "scan": _of(Scan),
    "attention_batch_first": _of(lambda: Attends(True)),
    "attention_tokens_first": _of(lambda: Attends(False, add_bias_kv=True)),
    "attention_other_widths": _of(lambda: Attends(True, kdim=7, vdim=9)),
    "transformer": lambda: (Translator(), (_ids(6), _ids(4))),
    "transformer_norm_first": lambda: (Translator(norm_first=True), (_ids(6), _ids(4))),
    "decoder": lambda: (Decoder(), (torch.randn(4, 2, 5), torch.randn(6, 2, 4))),
}
