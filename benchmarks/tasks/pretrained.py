"""Pretrained networks: ResNet-56 on CIFAR-10, MobileNetV1 on ImageNet crops, and a small Llama on stories."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.cifar import Augmented, images, predicted, test_images
from benchmarks.tasks.task import Task, accuracy, cross_entropy, label_loss, pairs, right_in_part
from bough import recovery
from tests.zoo.shim import declare_torchvision_ops


def resnet56(load: ModuleType, test: int) -> Task:
    found, labels = load.cifar10("train")
    train, truth = images(found[:1536], load), torch.from_numpy(labels[:1536])
    x, y = test_images(load, test)
    return Task(
        load.resnet_cifar10(56), pairs(train[:1024], truth[:1024], 128), cross_entropy,
        lambda model: {"accuracy": accuracy(model, x, y), "images": len(y)},
        lambda model: accuracy(model, train[1024:], truth[1024:]), "macs", ("conv1",),
        train_set=lambda: Augmented(load), output_loss=label_loss,
    )  # fmt: skip


def mobilenet(load: ModuleType, test: int) -> Task:
    found, labels = load.imagenet_sample()
    order = np.random.default_rng(0).permutation(len(found))
    train, truth = images(found[order[:512]], load), torch.from_numpy(np.asarray(labels)[order[:512]])
    model, x = load.mobilenetv1_025(), images(found[order[512 : 512 + test]], load)
    dense, same = predicted(model, x), predicted(model, train[256:])  # searches refit on the first images, by --samples 256
    return Task(
        model, pairs(train, truth, 32), cross_entropy,
        lambda small: {"agreement": accuracy(small, x, dense), "images": len(x)},
        lambda small: accuracy(small, train[256:], same), "macs", metric="agreement",
        choose_samples=right_in_part(train[256:], same),
    )  # fmt: skip


def language_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of each next token."""
    ids = batch[0] if isinstance(batch, (tuple, list)) else batch
    loss: Tensor = model(ids, labels=ids).loss
    return loss


def stories(load: ModuleType, test: int) -> Task:
    declare_torchvision_ops()  # transformers imports it
    tokenizer = load.Tok512()
    rows = token_rows(load, tokenizer, 800)
    held_out = [s.strip() for s in load.text("tinystories_sample_cs336").split("<|endoftext|>") if s.strip()]

    @torch.no_grad()
    def choose(model: nn.Module) -> float:
        return float(language_loss(model, rows[256:288]).exp())

    def train(small: nn.Module, model: nn.Module) -> Any:
        text = TensorDataset(torch.cat([rows[:256], rows[288:]]))
        training = recovery.Training(epochs=30, lr=2e-3, batch_size=16, weight_decay=0.01, clip=None)
        return recovery.distill(
            small, model, text, training, distillation=recovery.Distillation(temperature=1, logits=0.9),
            forward=lambda net, batch: net(input_ids=batch[0], labels=batch[0]),
        )  # fmt: skip

    return Task(
        load.stories260k(), list(rows[:256].split(32)), language_loss,
        lambda model: {"perplexity": load.perplexity(model, held_out[:test], tokenizer), "stories": len(held_out[:test])},
        choose, "params", lower_is_better=True, train=train, metric="perplexity",
    )  # fmt: skip


def token_rows(load: ModuleType, tokenizer: Any, count: int, length: int = 128) -> Tensor:
    """[count, length] tokens of TinyStories, each row begun as a text is."""
    ids: list[int] = []
    for paragraph in load.text("tinystories_train_head_197k").split("\n\n"):  # encoding takes the square of the length
        ids += tokenizer.encode(paragraph.strip() + "\n")
        if len(ids) >= count * (length - 1):
            break
    cut: Sequence[list[int]] = [[1, *ids[i : i + length - 1]] for i in range(0, len(ids) - length + 2, length - 1)]
    return torch.tensor(cut[:count])
