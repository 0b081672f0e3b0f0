"""Small models for the tests of exported files, each with one difficulty."""

from dataclasses import dataclass

import torch
from torch import nn


def convolutional(width: int = 11) -> nn.Module:
    """Convolutions, batch norms and a depthwise layer, of odd widths."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, 23, 1), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(23, 5),
    )  # fmt: skip


class TwoInputs(nn.Module):
    """Two inputs by keyword, one of them integers, and a nested dict as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> dict:
        hidden = self.linear(self.embed(tokens))
        return {"hidden": hidden * scale, "rest": {"choice": hidden.argmax(-1), "sums": [hidden.sum(-1)]}}


@dataclass
class Memory:
    """A cache of a class that nothing else knows."""

    kept: torch.Tensor
    length: int = 0


class Remembering(nn.Module):
    """Writes into the cache that it is given, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, memory: Memory) -> tuple:
        y = self.linear(x)
        memory.kept[:, memory.length] = y
        return memory.kept.mean(1), memory


class Draws(nn.Module):
    """Another output in each run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Biased(nn.Module):
    """Attention with a learned bias, whose output is reshaped as its memory allows."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.bias, self.out = nn.Linear(12, 36), nn.Parameter(torch.randn(3, 5, 5)), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Decides(nn.Module):
    """Asks a tensor a question: one made of constants alone, or the input."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.linear, self.constant = nn.Linear(4, 4), constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(3, 3).tril() if self.constant else x
        return self.linear(x) if mask.sum() > 2 else x
