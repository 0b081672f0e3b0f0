"""MLPerf Tiny's image classifier with its own weights, from a .tflite file of floats, and MobileNetV1 x0.25 on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar import Augmented, Drawn, batches, images, test_images
from benchmarks.tasks.task import Task, accuracy, cross_entropy, label_loss, pairs
from benchmarks.tasks.trained import recipe, settings_of, trained
from bough import recovery

TRAINED = 49_000  # training images; those after them are for validation, and the first 1,024 for calibration
SIDE = 64  # of the images that MobileNetV1 takes; MLPerf Tiny's own side, 96, would take twice as long to train
MOBILENET = recipe(epochs=8, lr=2e-3, batch_size=128, clip=1.0)


class PaddedResNet8(nn.Module):
    """ResNet-8 of MLPerf Tiny (Banbury et al., 2021) with folded batch norms; strided convolutions pad at the end alone."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.ReLU())
        self.bodies, self.skips = nn.ModuleList(), nn.ModuleList()
        inputs = widths[0]
        for width in widths:
            whole = width == inputs
            first = nn.Conv2d(inputs, width, 3, 1 if whole else 2, 1 if whole else 0)
            padding = nn.Identity() if whole else nn.ZeroPad2d((0, 1, 0, 1))
            self.bodies.append(nn.Sequential(padding, first, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)))
            self.skips.append(nn.Identity() if whole else nn.Conv2d(inputs, width, 1, 2))
            inputs = width
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] in 0..1 to logits."""
        x = self.stem(x)
        for body, skip in zip(self.bodies, self.skips, strict=True):
            x = torch.relu(skip(x) + body(x))
        return self.head(x.mean((2, 3)))

    def layers(self) -> list[nn.Module]:
        """Return the layers in the order of the .tflite file."""
        found: list[nn.Module] = [self.stem[0]]
        for body, skip in zip(self.bodies, self.skips, strict=True):
            found += [layer for layer in (body[1], body[3], skip) if isinstance(layer, nn.Conv2d)]
        return [*found, self.head]


def tflite_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (weight, bias) of each convolution and linear layer of a .tflite file, in order; int8 weights dequantized."""
    try:
        import tflite
    except ImportError:
        raise SystemExit("tasks of MLPerf Tiny read a .tflite file: pip install tflite") from None
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)

    def array(index: int) -> np.ndarray:
        tensor = graph.Tensors(index)
        small = tensor.Type() == tflite.TensorType.INT8
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy().view(np.int8 if small else np.float32)
        raw = raw.reshape(tensor.ShapeAsNumpy())
        return raw * tensor.Quantization().ScaleAsNumpy().reshape(-1, *[1] * (raw.ndim - 1)) if small else raw

    kinds = tflite.BuiltinOperator
    known = (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED)
    ops = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    chosen = [op for op in ops if model.OperatorCodes(op.OpcodeIndex()).BuiltinCode() in known]
    return [(array(op.Inputs(1)), array(op.Inputs(2))) for op in chosen]


@torch.no_grad()
def pretrained(path: Path) -> PaddedResNet8:
    """Return the classifier with the weights of the file, for images in 0..1 in place of 0..255."""
    model = PaddedResNet8()
    for layer, (weight, bias) in zip(model.layers(), tflite_layers(path), strict=True):
        w = torch.from_numpy(weight.copy())
        layer.weight.copy_(w.permute(0, 3, 1, 2) if w.dim() == 4 else w)  # type: ignore[operator,union-attr]
        layer.bias.copy_(torch.from_numpy(bias.copy()))  # type: ignore[operator,union-attr]
    model.stem[0].weight.mul_(255)  # type: ignore[operator,union-attr]
    return model.eval()


class InBytes(Drawn):
    """The images of a dataset that normalizes them, in 0..1."""

    def __init__(self, data: Augmented, load: ModuleType) -> None:
        self.data, self.load = data, load

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, labels = self.data.__getitems__(indices)
        return plain(x, self.load), labels


def plain(x: Tensor, load: ModuleType) -> Tensor:
    """Return normalized images in 0..1."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (load.CIFAR10_MEAN, load.CIFAR10_STD))
    return x * std + mean


def resnet8_mlperf(load: ModuleType, test: int) -> Task:
    found, labels = load.cifar10("train")
    x = torch.from_numpy(found).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels)
    held, truth = x[TRAINED:].float() / 255, y[TRAINED:]
    tested, wanted = test_images(load, test)
    tested = plain(tested, load)
    calibration: list[Any] = pairs(x[:1024].float() / 255, y[:1024], 128)
    return Task(
        pretrained(Path(load.__file__).parent / "mlperf_tiny" / "pretrainedResnet.tflite"), calibration, cross_entropy,
        lambda model: {"accuracy": accuracy(model, tested, wanted), "images": len(wanted)},
        lambda model: accuracy(model, held, truth), "macs",
        train_set=lambda: InBytes(Augmented(load, TRAINED), load), output_loss=label_loss,
    )  # fmt: skip


class Enlarged(Drawn):
    """The images of a dataset at SIDE x SIDE, [N, 3, SIDE, SIDE]."""

    def __init__(self, data: Drawn) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        x, labels = self.data.__getitems__(indices)
        return enlarged(x), labels


def enlarged(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] at SIDE x SIDE."""
    return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear")


def mobilenetv1_cifar(load: ModuleType, test: int) -> Task:
    """MobileNetV1 x0.25 with its ImageNet weights and a new last layer, trained on enlarged images of CIFAR-10.

    The sample of ImageNet in the data has one image a class, which is too few for training after a cut.
    """
    found, labels = load.cifar10("train")
    x, y = enlarged(images(found[:1024], load)), torch.from_numpy(labels[:1024])
    held, truth = enlarged(images(found[TRAINED:], load)), torch.from_numpy(labels[TRAINED:])
    tested, wanted = test_images(load, test)
    tested = enlarged(tested)

    def build() -> nn.Module:
        model = load.mobilenetv1_025()
        model.fc = nn.Linear(model.fc.in_features, 10)
        return model  # type: ignore[no-any-return]

    def train(model: nn.Module, folder: Path) -> None:
        data = batches(Enlarged(Augmented(load, TRAINED)), MOBILENET.batch_size)
        recovery.finetune(
            model.to(memory_format=torch.channels_last), data, replace(MOBILENET, folder=folder), loss=label_loss
        )  # fmt: skip

    settings = settings_of(MOBILENET, side=SIDE, images=TRAINED)
    return Task(
        trained("mobilenetv1_cifar", build, train, settings), pairs(x, y, 128), cross_entropy,
        lambda model: {"accuracy": accuracy(model, tested, wanted), "images": len(wanted)},
        lambda model: accuracy(model, held, truth), "macs",
        train_set=lambda: Enlarged(Augmented(load, TRAINED)), output_loss=label_loss,
    )  # fmt: skip
