"""Small networks for the C export, and how their folders are built and run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

COMPILER = shutil.which("cc") or shutil.which("gcc")


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
            ):
                with torch.no_grad():
                    values.uniform_(low, high, generator=generator)
    return net.eval()


class Residual(nn.Module):
    """Convolutions of several kinds, a residual sum, a gate, a concatenation and a head."""

    def __init__(self, width: int, inner: int, kernel: int = 3, stride: int = 1, dilation: int = 1, classes: int = 5) -> None:
        super().__init__()
        pad = kernel // 2 * dilation
        self.stem = nn.Sequential(nn.Conv2d(3, width, kernel, stride, kernel // 2), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, kernel, padding=pad, dilation=dilation, groups=width)
        self.expand, self.project = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1, bias=False)
        self.gate = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(x)
        y = self.project(functional.hardswish(self.expand(functional.relu6(self.depthwise(x)))))
        x = x + y
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        pooled = functional.max_pool2d(x, 2)
        return self.head(torch.cat([pooled.mean((2, 3)), functional.adaptive_avg_pool2d(x, 1).flatten(1)], 1))


class Last(nn.Module):
    """What a linear layer makes of a recurrent layer's last step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(5, 11, batch_first=True), nn.Linear(11, 3)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences [N, steps, 5] to three numbers each."""
        return self.head(self.layer(x)[0][:, -1])


def run_make(folder: Path, *goals: str) -> dict[str, int]:
    """Run make in an exported folder with warnings as errors, and return the numbers that the test program prints."""
    done = subprocess.run(
        ["make", "-C", str(folder), "WARNINGS=-std=c99 -Wall -Wextra -Wconversion -Werror", *goals],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {name: int(value) for name, value in re.findall(r"^([a-z_]+) (-?\d+)$", done.stdout + done.stderr, re.MULTILINE)}
