"""Views of the training images with a teacher's answers to them, computed once: a large teacher for the price of a small one.

The teacher is the mean of the logits of ResNet-20, 32, 44 and 56. It sees the very crops that the student will see, as in
Beyer et al. (2022), but only some views of each image: PLAIN ones and, where they are asked for, PASTED ones, which have a
square of another image in them (CutMix, Yun et al., 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks.cifar import Augmented, paste, squares

PLAIN, PASTED = 12, 24
DEPTHS = (20, 32, 44, 56)


@dataclass(frozen=True)
class Views:
    """Crops at random of every image, with squares of another image in the same view.

    Attributes:
        images: what crops are taken of.
        down, right: rows and columns of the crops, [views, images, 32].
        places: of the squares, [views, images, 3]: side (0 where nothing is pasted), top, left.
        others: which image they are of, [views, images].
    """

    images: Augmented
    down: Tensor
    right: Tensor
    places: Tensor
    others: Tensor

    def take(self, view: Tensor, at: Tensor) -> Tensor:
        """Images `at` [n], each in its view [n] -> [n, 3, 32, 32]."""
        x, other = (self.images.take(i, self.down[view, i], self.right[view, i]) for i in (at, self.others[view, at]))
        return paste(x, other, self.places[view, at])


class Answered(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Training images in one of their views, labels and the teacher's logits; `answers`: [views, images, classes]."""

    def __init__(self, views: Views, answers: Tensor) -> None:
        self.views, self.answers = views, answers

    def __len__(self) -> int:
        return len(self.views.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.as_tensor(indices)
        view = torch.randint(len(self.answers), (len(at),))
        return self.views.take(view, at), self.views.images.labels[at], self.answers[view, at].float()


def with_answers(images: Augmented, folder: Path, pasted: bool = False) -> Answered:
    """Answers that are in the folder are taken from there, the others computed; `pasted`: most of the views are."""
    folder.mkdir(parents=True, exist_ok=True)
    views = drawn(images, pasted)
    files = [folder / f"{view}.pt" for view in range(len(views.down))]
    missing = [view for view, file in enumerate(files) if not file.exists()]
    here = "cuda" if torch.cuda.is_available() else "cpu"
    nets = [fuse(images.load.resnet_cifar10(d).eval()).to(here, memory_format=torch.channels_last) for d in DEPTHS if missing]
    for view in tqdm(missing, desc="teachers' answers", disable=not missing):
        part = files[view].with_suffix(".part")
        torch.save(answers(nets, views, view), part)
        part.rename(files[view])
    return Answered(views, torch.stack([torch.load(file) for file in files]))


def drawn(images: Augmented, pasted: bool) -> Views:
    n, count = len(images), PLAIN + PASTED * pasted
    with torch.random.fork_rng():
        torch.manual_seed(0)
        down, right = (torch.stack(x) for x in zip(*(images.draw(n) for _ in range(count)), strict=True))
        places = torch.stack([torch.zeros(n, 3).long() if view < PLAIN else squares(n) for view in range(count)])
        others = torch.stack([torch.randperm(n) for _ in range(count)])
    return Views(images, down, right, places, others)


@torch.no_grad()
def answers(nets: Sequence[nn.Module], views: Views, view: int) -> Tensor:
    """The mean of the networks' logits for every image in a view: [images, classes], in half precision."""
    found, here = [], next(nets[0].parameters()).device
    for at in torch.arange(len(views.images)).split(128):
        x = views.take(torch.full_like(at, view), at).to(here)
        with torch.autocast(here.type, dtype=torch.bfloat16):
            found.append((sum(net(x).float() for net in nets) / len(nets)).cpu())
    return torch.cat(found).half()
