"""MLPerf Tiny's keyword spotter, a DS-CNN with the weights of its .tflite file, on its evaluation set (1,000 clips).

Reading the file needs `pip install tflite`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.tasks.mlperf import tflite_layers
from benchmarks.tasks.task import Task, accuracy, cross_entropy, pairs, right_in_part

CALIBRATION, VALIDATION = 300, 300  # clips; the rest, 400, are the test
FILE = "mlperf_tiny/kws_ref_model_float32.tflite"


class KeywordSpotter(nn.Module):
    """A convolution and four depthwise separable ones, batch norms folded in (Banbury et al., 2021)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, width, (10, 4), 2), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()
                )
                for _ in range(4)
            )
        )
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, 49, 10] to logits [N, 12]."""
        return self.head(self.blocks(self.stem(x.unsqueeze(1))).mean((2, 3)))


@torch.no_grad()
def pretrained(file: Path) -> nn.Module:
    """Return the network with the weights of the file."""
    model = KeywordSpotter()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer, (weight, bias) in zip(layers, tflite_layers(file), strict=True):
        w = torch.from_numpy(weight.copy())
        if isinstance(layer, nn.Conv2d):  # [outputs, height, width, inputs]; of depthwise ones outputs are last
            w = w.permute(3, 0, 1, 2) if layer.groups > 1 else w.permute(0, 3, 1, 2)
        layer.weight.copy_(w)
        layer.bias.copy_(torch.from_numpy(bias.copy()))  # type: ignore[union-attr]
    return model.eval()


def keywords(load: ModuleType, test: int, split: int = 0) -> Task:
    """The task on one random split of the evaluation set into calibration, validation and test data."""
    found, labels = load.keyword_features()
    order = np.random.default_rng(split).permutation(len(found))
    x, y = torch.from_numpy(found[order]), torch.from_numpy(labels[order])
    parts = [CALIBRATION, VALIDATION, len(x) - CALIBRATION - VALIDATION]
    (fit, known), (unseen, wanted), (tested, truth) = zip(x.split(parts), y.split(parts), strict=True)
    tested, truth = tested[:test], truth[:test]
    return Task(
        pretrained(Path(load.__file__).parent / FILE), pairs(fit, known, 64), cross_entropy,
        lambda model: {"accuracy": accuracy(model, tested, truth), "clips": len(truth)},
        lambda model: accuracy(model, unseen, wanted), "macs", choose_samples=right_in_part(unseen, wanted),
    )  # fmt: skip
