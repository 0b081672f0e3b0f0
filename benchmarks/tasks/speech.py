"""Spoken digits in noise: a recurrent network and a depthwise separable one, trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cifar import Drawn, batches
from benchmarks.tasks.task import Task, accuracy, cross_entropy, label_loss, pairs, right_in_part
from benchmarks.tasks.trained import recipe, settings_of, trained
from bough import recovery

LENGTH, FRAME, HOP, MELS, COEFFICIENTS = 8192, 256, 128, 32, 16  # samples at 8 kHz; 65 frames
VALIDATION = 300  # clips of the training split that are held back
NOISE = (0.0, 20.0)  # signal to noise, in dB
TRAINING = recipe(epochs=25, lr=3e-3, clip=1.0)


class SpeechGRU(nn.Module):
    """A convolution over time, a GRU of two layers in both directions, and a mean over time."""

    def __init__(self, width: int = 48, hidden: int = 64) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(COEFFICIENTS, width, 5, stride=2, padding=2), nn.ReLU())
        self.recurrent = nn.GRU(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, frames, COEFFICIENTS] to logits [N, 10]."""
        seen, _ = self.recurrent(self.front(x.transpose(1, 2)).transpose(1, 2))
        return self.head(seen.mean(1))


class DSCNN(nn.Module):
    """A convolution and four depthwise separable ones (Zhang et al., 2017), all with batch norm."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def normed(convolution: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())

        self.stem = normed(nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    normed(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)),
                    normed(nn.Conv2d(width, width, 1, bias=False)),
                )
                for _ in range(4)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, frames, COEFFICIENTS] to logits [N, 10]."""
        return self.head(self.blocks(self.stem(x.unsqueeze(1))).mean((2, 3)))


class NoisyDigits(Drawn):
    """Clips at random places in LENGTH samples of white noise of a random level, as features."""

    def __init__(self, clips: Sequence[np.ndarray], labels: Tensor) -> None:
        self.clips, self.labels = [torch.from_numpy(c.astype(np.float32)) for c in clips], labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        waves = torch.zeros(len(indices), LENGTH)
        for wave, index in zip(waves, indices, strict=True):
            clip = self.clips[index][:LENGTH]
            clip = clip / clip.square().mean().sqrt()
            start = int(torch.randint(LENGTH - len(clip) + 1, ()))
            wave[start : start + len(clip)] = clip
        decibels = torch.empty(len(indices), 1).uniform_(*NOISE)
        waves += torch.randn_like(waves) * 10 ** (-decibels / 20)
        return features(waves), self.labels[torch.as_tensor(indices)]


def features(waves: Tensor) -> Tensor:
    """Return mel-frequency cepstral coefficients of [N, samples]: [N, frames, COEFFICIENTS], of about unit scale."""
    spectrum = torch.stft(waves, FRAME, HOP, window=torch.hann_window(FRAME), return_complex=True).abs().square()
    loudness = (mel_filters() @ spectrum + 1e-3).log()  # [N, MELS, frames]
    return (cosines() @ loudness).transpose(1, 2) / 5


@lru_cache
def mel_filters() -> Tensor:
    """Triangles [MELS, FRAME / 2 + 1], evenly spaced on the mel scale up to 4 kHz."""
    top = 2595 * math.log10(1 + 4000 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    at = torch.linspace(0, 4000, FRAME // 2 + 1)
    rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


@lru_cache
def cosines() -> Tensor:
    """The orthonormal discrete cosine transform [COEFFICIENTS, MELS]."""
    angles = math.pi / MELS * (torch.arange(MELS) + 0.5) * torch.arange(COEFFICIENTS)[:, None]
    matrix = angles.cos() * math.sqrt(2 / MELS)
    matrix[0] /= math.sqrt(2)
    return matrix


def drawn(clips: NoisyDigits, copies: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features and labels of all clips, each with as many draws of place and noise as `copies`, in a random order."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        order = torch.randperm(copies * len(clips)) % len(clips)
        return clips.__getitems__(order.tolist())


def speech_task(load: ModuleType, test: int, name: str, build: Callable[[], nn.Module]) -> Task:
    """The task of classifying noisy digits by a network that is trained here."""
    clips, digits = load.spoken_digits("train")
    order, labels = np.random.default_rng(0).permutation(len(clips)), torch.from_numpy(digits)

    def some(which: np.ndarray) -> NoisyDigits:
        return NoisyDigits([clips[i] for i in which], labels[which])

    learned, unseen = some(order[VALIDATION:]), some(order[:VALIDATION])
    found, truth = load.spoken_digits("test")
    x, y = (t[:test] for t in drawn(NoisyDigits(found, torch.from_numpy(truth)), 10, seed=1))
    validation, wanted = drawn(unseen, 10, seed=2)
    calibration, known = (t[:1024] for t in drawn(learned, 1, seed=3))

    def train(model: nn.Module, folder: Path) -> None:
        data = batches(learned, TRAINING.batch_size)
        recovery.finetune(model, data, replace(TRAINING, folder=folder), loss=label_loss)

    settings = settings_of(TRAINING, noise=NOISE, clips=len(learned))
    return Task(
        trained(name, build, train, settings), pairs(calibration, known, 128), cross_entropy,
        lambda model: {"accuracy": accuracy(model, x, y), "clips": len(y)},
        lambda model: accuracy(model, validation, wanted), "macs",
        train_set=lambda: learned, output_loss=label_loss, choose_samples=right_in_part(validation, wanted),
    )  # fmt: skip


def speech_gru(load: ModuleType, test: int) -> Task:
    return speech_task(load, test, "speech_gru", SpeechGRU)


def dscnn(load: ModuleType, test: int) -> Task:
    return speech_task(load, test, "dscnn", DSCNN)
