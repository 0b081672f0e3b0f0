"""Small models of many kinds of weights, and batches for them."""

import torch
from torch import nn


class Mixed(nn.Module):
    """Convolutions (one with groups, one transposed), a packed attention, an einsum over a raw parameter, linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.raw = nn.Parameter(torch.randn(4, 12) / 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.up(torch.relu(self.grouped(torch.relu(self.conv(x)))))
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.relu(torch.einsum("bnc,ch->bnh", x, self.raw)).mean(1))


class Tied(nn.Module):
    """An embedding and a head with the same weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.inner(self.embed(ids))))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(8, 8, generator=generator)
    return [torch.randn(32, 8, generator=generator) @ mix for _ in range(4)]
