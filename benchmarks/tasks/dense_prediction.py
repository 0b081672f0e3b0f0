"""Dense prediction on ImageNet crops: super-resolution in dB, and the masks of pasted digits in percent of mean IoU."""

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

from benchmarks.cifar import Drawn, batches
from benchmarks.tasks.task import Task, label_loss, pairs
from benchmarks.tasks.trained import recipe, settings_of, trained
from bough import recovery

LEARNED, VALIDATION = 800, 100  # crops for training and for validation; the rest are for the test
SCALE, PATCH = 3, 72  # of super-resolution; the side of a large patch
SUPER_RESOLUTION = recipe(epochs=12, lr=2e-3, weight_decay=0.0, warmup=0.05, batch_size=16)
SIDE, DIGIT = 64, 32  # of segmented images, and of the digits in them
UNET = recipe(epochs=6, lr=3e-3, batch_size=16, clip=1.0, precision="bf16")


class FSRCNN(nn.Module):
    """Super-resolution of a grey image (Dong et al., 2016): no batch norm, and a transposed convolution at the end."""

    def __init__(self, scale: int = SCALE, width: int = 56, shrunk: int = 12, maps: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 5, padding=2), nn.PReLU(width))
        middle: list[nn.Module] = [nn.Conv2d(width, shrunk, 1), nn.PReLU(shrunk)]
        for _ in range(maps):
            middle += [nn.Conv2d(shrunk, shrunk, 3, padding=1), nn.PReLU(shrunk)]
        self.middle = nn.Sequential(*middle, nn.Conv2d(shrunk, width, 1), nn.PReLU(width))
        self.last = nn.ConvTranspose2d(width, 1, 9, scale, padding=4, output_padding=scale - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, H, W] to [N, 1, scale x H, scale x W], in 0..1."""
        return self.last(self.middle(self.first(x)))


class UNet(nn.Module):
    """A U-Net of three levels with batch norm."""

    def __init__(self, classes: int = 2, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for width in (inputs, outputs):
                layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(twice(i, o) for i, o in zip((3, *widths), widths, strict=False))
        rising = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in rising)
        self.merge = nn.ModuleList(twice(2 * o, o) for _, o in rising)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes, H, W]."""
        skipped = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skipped.append(x)
        for up, merge, skip in zip(self.up, self.merge, skipped[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


class SmallPatches(Drawn):
    """Random patches of grey images [N, H, W] in bytes: (scaled down, as they are), in 0..1."""

    def __init__(self, grey: Tensor, copies: int = 4) -> None:
        self.grey, self.copies = grey, copies

    def __len__(self) -> int:
        return self.copies * len(self.grey)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        large = random_crops(self.grey[torch.as_tensor(indices) % len(self.grey)].unsqueeze(1), PATCH) / 255
        return scaled_down(large), large


class PastedDigits(Drawn):
    """Crops of images [N, 3, H, W] in bytes with two digits of other images' texture in them; labels: 1 in digits, or 0.

    Args:
        masks: whether a pixel is of the digit, [M, DIGIT, DIGIT].
    """

    def __init__(self, images: Tensor, masks: Tensor, copies: int = 4) -> None:
        self.images, self.masks, self.copies = images, masks, copies

    def __len__(self) -> int:
        return self.copies * len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        count = len(indices)
        x = random_crops(self.images[torch.as_tensor(indices) % len(self.images)], SIDE)
        labels = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
        for texture in (torch.randint(len(self.images), (count,)), torch.randint(len(self.images), (count,))):
            other = random_crops(self.images[texture], SIDE)
            which, places = torch.randint(len(self.masks), (count,)), torch.randint(SIDE - DIGIT + 1, (count, 2))
            for i, (mask, (top, left)) in enumerate(zip(which, places.tolist(), strict=True)):
                at = torch.zeros(SIDE, SIDE, dtype=torch.bool)
                at[top : top + DIGIT, left : left + DIGIT] = self.masks[mask]
                x[i] = torch.where(at, other[i], x[i])
                labels[i][at] = 1
        return x / 128 - 1, labels


def random_crops(images: Tensor, side: int) -> Tensor:
    """One square of each image [N, C, H, W] at random, mirrored half of the time, in float."""
    count, _, height, width = images.shape
    tops, lefts = torch.randint(height - side + 1, (count,)), torch.randint(width - side + 1, (count,))
    mirrored = torch.rand(count) < 0.5
    crops = [i[:, t : t + side, s : s + side] for i, t, s in zip(images, tops.tolist(), lefts.tolist(), strict=True)]
    x = torch.stack(crops).float()
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def scaled_down(large: Tensor) -> Tensor:
    """Bicubic, with a filter against aliasing."""
    return F.interpolate(large, scale_factor=1 / SCALE, mode="bicubic", antialias=True)


def drawn(data: Drawn, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first `count` samples as `seed` draws them; the global generator stays as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return data.__getitems__(range(count))  # type: ignore[attr-defined]


@torch.no_grad()
def psnr(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Peak signal to noise in dB, the mean over images; pixels at the edge, as many as the scale, do not count."""
    edge = slice(SCALE, -SCALE)
    found = torch.cat([model.eval()(b) for b in x.split(50)]).clamp(0, 1)
    errors = (found - y)[..., edge, edge].square().mean((1, 2, 3))
    return float(-10 * errors.log10().mean())


@torch.no_grad()
def mean_iou(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Intersection over union in percent, over all pixels of all images; the mean over the classes that have pixels."""
    found = torch.cat([model.eval()(b).argmax(1) for b in x.split(50)])
    ious = []
    for c in torch.cat([found, labels]).unique():
        both, either = ((found == c) & (labels == c)).sum(), ((found == c) | (labels == c)).sum()
        ious.append(float(both / either))
    return 100 * sum(ious) / len(ious)


def parts(load: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
    """ImageNet crops [N, 3, 224, 224] in bytes, for training, validation and the test."""
    found, _ = load.imagenet_sample()
    found = torch.from_numpy(found[np.random.default_rng(0).permutation(len(found))]).permute(0, 3, 1, 2)
    return found[:LEARNED], found[LEARNED : LEARNED + VALIDATION], found[LEARNED + VALIDATION :]


def super_resolution(load: ModuleType, test: int) -> Task:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    learned, unseen, rest = (SmallPatches((p * weights).sum(1)) for p in parts(load))
    calibration, validation = drawn(learned, 1024, seed=1), drawn(unseen, len(unseen), seed=2)
    tested = drawn(rest, min(test, len(rest)), seed=3)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(output, batch[1])

    def train(model: nn.Module, folder: Path) -> None:
        data = batches(learned, SUPER_RESOLUTION.batch_size)
        recovery.finetune(model, data, replace(SUPER_RESOLUTION, folder=folder), loss=loss)

    settings = settings_of(SUPER_RESOLUTION, scale=SCALE, patch=PATCH, patches=len(learned))
    return Task(
        trained("super_resolution", FSRCNN, train, settings), pairs(*calibration, 32),
        lambda model, batch: loss(model(batch[0]), batch),
        lambda model: {"psnr": psnr(model, *tested), "images": len(tested[0])},
        lambda model: psnr(model, *validation), "macs", metric="psnr", train_set=lambda: learned, output_loss=loss,
    )  # fmt: skip


def unet(load: ModuleType, test: int) -> Task:
    from sklearn.datasets import load_digits  # 1,797 written digits of 8 x 8 pixels come with scikit-learn

    masks = F.interpolate(torch.from_numpy(load_digits().images).unsqueeze(1), DIGIT, mode="bilinear")[:, 0] > 7
    of_part = (slice(0, 1400), slice(1400, 1500), slice(1500, None))
    learned, unseen, rest = (PastedDigits(p, masks[w]) for p, w in zip(parts(load), of_part, strict=True))
    calibration, validation = drawn(learned, 1024, seed=1), drawn(unseen, 2 * VALIDATION, seed=2)
    tested = drawn(rest, min(test, len(rest)), seed=3)

    def train(model: nn.Module, folder: Path) -> None:
        data = batches(learned, UNET.batch_size)
        recovery.finetune(
            model.to(memory_format=torch.channels_last), data, replace(UNET, folder=folder), loss=label_loss
        )  # fmt: skip

    settings = settings_of(UNET, side=SIDE, digit=DIGIT, images=len(learned))
    return Task(
        trained("unet", UNet, train, settings), pairs(*calibration, 32),
        lambda model, batch: label_loss(model(batch[0]), batch),
        lambda model: {"miou": mean_iou(model, *tested), "images": len(tested[0])},
        lambda model: mean_iou(model, *validation), "macs", metric="miou", train_set=lambda: learned, output_loss=label_loss,
    )  # fmt: skip
