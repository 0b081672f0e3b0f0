"""A vision transformer and two convolutional networks on CIFAR-10, trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar import Augmented, batches, images, test_images
from benchmarks.tasks.task import Task, accuracy, cross_entropy, label_loss, pairs
from benchmarks.tasks.trained import recipe, settings_of, trained
from bough import recovery

TRAINED = 49_000  # training images; those after them are for validation, and the first 1,024 for calibration
VIT = recipe(epochs=14, weight_decay=0.05, clip=1.0, precision="bf16")
PLAIN = recipe(epochs=6, lr=0.1, optimizer="sgd", weight_decay=5e-4, warmup=0.15, batch_size=128, precision="bf16")
RESNET8 = recipe(epochs=30, lr=0.1, optimizer="sgd", weight_decay=5e-4, warmup=0.15, batch_size=128, precision="bf16")
HALF = 2 / 3  # of the ViT's training steps see half of the patches


class Attention(nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer for 32 x 32 images: 64 patches of 4 x 4, 128 wide, 6 blocks of 4 heads, mean over patches."""

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Args: seen: indices of the patches that are kept; all of them by default."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        if seen is not None:
            x = x[:, seen]
        return self.head(self.norm(self.blocks(x)).mean(1))


class ResNet8(nn.Module):
    """The image classifier of MLPerf Tiny (Banbury et al., 2021): three stages of 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()

        def normed(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        self.stem = nn.Sequential(normed(3, 16, 3, 1), nn.ReLU())
        self.bodies, self.skips = nn.ModuleList(), nn.ModuleList()
        inputs = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            self.bodies.append(nn.Sequential(normed(inputs, width, 3, stride), nn.ReLU(), normed(width, width, 3, 1)))
            self.skips.append(nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 1, stride))
            inputs = width
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits."""
        x = self.stem(x)
        for body, skip in zip(self.bodies, self.skips, strict=True):
            x = torch.relu(skip(x) + body(x))
        return self.head(x.mean((2, 3)))


def plain_cnn() -> nn.Module:
    """A VGG-like network: pairs of 3 x 3 convolutions with batch norm, and pooling between them."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (32, 64, 128):
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def some_patches(model: nn.Module, batch: Any) -> Any:
    """The ViT's logits from a random half of the patches, in a share HALF of the calls: twice as fast."""
    few = torch.rand(()) < HALF
    return model(batch[0], torch.randperm(64)[:32] if few else None)


def vit(load: ModuleType, test: int) -> Task:
    def train(model: nn.Module, folder: Path) -> None:
        data = batches(Augmented(load, TRAINED), VIT.batch_size)
        recovery.finetune(model, data, replace(VIT, folder=folder), forward=some_patches, loss=label_loss)

    return cifar_task(load, test, trained("vit", ViT, train, settings_of(VIT, half=HALF, images=TRAINED)))


def plain(load: ModuleType, test: int) -> Task:
    def train(model: nn.Module, folder: Path) -> None:
        data = batches(Augmented(load, TRAINED), PLAIN.batch_size)
        recovery.finetune(model.to(memory_format=torch.channels_last), data, replace(PLAIN, folder=folder), loss=label_loss)

    return cifar_task(load, test, trained("plain_cnn", plain_cnn, train, settings_of(PLAIN, images=TRAINED)))


def resnet8(load: ModuleType, test: int) -> Task:
    def train(model: nn.Module, folder: Path) -> None:
        data = batches(Augmented(load, TRAINED), RESNET8.batch_size)
        recovery.finetune(model.to(memory_format=torch.channels_last), data, replace(RESNET8, folder=folder), loss=label_loss)

    return cifar_task(load, test, trained("resnet8", ResNet8, train, settings_of(RESNET8, images=TRAINED)))


def resnet20(load: ModuleType, test: int) -> Task:
    """The pretrained ResNet-20; its weights were trained on the validation images, too."""
    return cifar_task(load, test, load.resnet_cifar10(20), ignore=("conv1",))


def cifar_task(load: ModuleType, test: int, model: nn.Module, ignore: tuple[str, ...] = ()) -> Task:
    """The task of classifying CIFAR-10 by a trained model."""
    found, labels = load.cifar10("train")
    x, y = images(found[:1024], load), torch.from_numpy(labels[:1024])
    validation, truth = images(found[TRAINED:], load), torch.from_numpy(labels[TRAINED:])
    tested, wanted = test_images(load, test)
    return Task(
        model, pairs(x, y, 128), cross_entropy,
        lambda model: {"accuracy": accuracy(model, tested, wanted), "images": len(wanted)},
        lambda model: accuracy(model, validation, truth), "macs", ignore,
        train_set=lambda: Augmented(load, TRAINED), output_loss=label_loss,
    )  # fmt: skip
