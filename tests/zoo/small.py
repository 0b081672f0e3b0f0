"""Small nets, one difficulty each: name -> () -> (model, example inputs)."""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.bn1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.bn2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.b(F.relu(self.bn1(self.a(x))))))
        return self.head(x.mean((2, 3)))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 4)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class ChannelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class StridedSlice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(x[:, ::2]) + self.c(x[:, 1::2])


class PixelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.c(F.relu(self.b(F.pixel_shuffle(F.relu(self.a(x)), 2))))


class RawParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v, self.head = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(F.linear(F.relu(x @ self.w), self.v)))


class ChunkAndSlice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 16), nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        one, two = x.chunk(2, dim=-1)
        return self.b(one) + self.c(two) + self.d(x[:, :4])


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(6, 3)
        self.register_buffer("mix", torch.randn(8, 6))
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        x = torch.einsum("bd,de->be", F.relu(self.a(x)), self.mix)
        return self.b(F.relu(torch.einsum("be,ef->bf", x, self.w)))


class TimesBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("shift", torch.rand(1, 8))

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x) * self.scale + self.shift))


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.shared(x))
        return self.head(x + F.relu(self.shared(y)))


class OneChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 1, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.head(F.relu(self.c(x * torch.sigmoid(self.b(F.pad(x, (1, 1, 1, 1)))))).mean((2, 3)))


class GatedAttention(nn.Module):
    """Grouped-query attention with rotary pairs and a gated feed-forward, written by hand."""

    def __init__(self):
        super().__init__()
        self.heads, self.kv, self.dim = 4, 2, 8
        self.embed, self.norm = nn.Embedding(20, 16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.o, self.gate_up, self.down = nn.Linear(32, 16), nn.Linear(16, 48), nn.Linear(24, 16)
        self.head = nn.Linear(16, 20)
        self.register_buffer("freq", 1.0 / 100 ** (torch.arange(4) / 4))

    def rotate(self, x):
        angle = torch.outer(torch.arange(x.shape[-2]).to(self.freq.dtype), self.freq)
        angle = torch.cat((angle, angle), -1)
        one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angle.cos() + torch.cat((-two, one), -1) * angle.sin()

    def forward(self, ids):
        x = self.embed(ids)
        y = self.norm(x)
        b, n, _ = y.shape
        q = self.rotate(self.q(y).view(b, n, self.heads, self.dim).transpose(1, 2))
        k = self.rotate(self.k(y).view(b, n, self.kv, self.dim).transpose(1, 2))
        v = self.v(y).view(b, n, self.kv, self.dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1)
        x = x + self.o(y)
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return self.head(x + self.down(F.silu(gate) * up))


class GatedUnit(nn.Module):
    """Value and gate from one fused layer, split by F.glu."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(F.glu(self.a(x), dim=-1))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 16), nn.TransformerEncoder(layer, 2), nn.Flatten(1), nn.Linear(16 * 6, 3))
    return model, torch.randn(2, 6, 5)


def weight_norm(new: bool):
    wrap = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
    return nn.Sequential(wrap(nn.Linear(5, 8)), nn.ReLU(), wrap(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 5)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)), torch.randn(2, 5)


def group_norm():
    layers = [nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.SiLU(), nn.Conv2d(12, 8, 3), nn.Flatten(1), nn.Linear(128, 3)]
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)


def transposed():
    layers = [nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1)]
    return nn.Sequential(*layers), torch.randn(2, 3, 5, 5)


IMAGE, FEATURES = (2, 3, 8, 8), (2, 5)


def _of(kind, shape):
    return lambda: (kind(), torch.randn(shape))


ZOO = {
    "mlp": mlp,
    "residual": _of(Residual, IMAGE),
    "channels_last": _of(ChannelsLast, IMAGE),
    "channel_shuffle": _of(ChannelShuffle, IMAGE),
    "strided_slice": _of(StridedSlice, FEATURES),
    "encoder": encoder,
    "pixel_shuffle": _of(PixelShuffle, IMAGE),
    "raw_parameters": _of(RawParameters, FEATURES),
    "weight_norm_hook": lambda: weight_norm(False),
    "weight_norm_parametrization": lambda: weight_norm(True),
    "chunk_and_slice": _of(ChunkAndSlice, FEATURES),
    "einsum": _of(Einsum, FEATURES),
    "times_buffer": _of(TimesBuffer, FEATURES),
    "shared_layer": _of(SharedLayer, FEATURES),
    "one_channel": _of(OneChannel, (2, 1, 9, 9)),
    "gated_attention": lambda: (GatedAttention(), torch.randint(0, 20, (2, 7))),
    "group_norm": group_norm,
    "transposed": transposed,
    "glu": _of(GatedUnit, FEATURES),
}
