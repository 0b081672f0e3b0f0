"""Crops of the training images with a teacher's answers to them, computed once: a large teacher for the price of a small one.

The teacher is the mean of the logits of ResNet-20, 32, 44 and 56. It sees the very crops that the student will see, as in
Beyer et al. (2022), but only VIEWS of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks.cifar import Augmented

VIEWS = 12
DEPTHS = (20, 32, 44, 56)


class Answered(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A training image, its label and the teacher's logits, for one of its crops at random.

    Args:
        images: what crops are taken of.
        down, right: rows and columns of the crops, [views, images, 32].
        answers: [views, images, classes].
    """

    def __init__(self, images: Augmented, down: Tensor, right: Tensor, answers: Tensor) -> None:
        self.images, self.down, self.right, self.answers = images, down, right, answers

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.as_tensor(indices)
        view = torch.randint(len(self.answers), (len(at),))
        x = self.images.take(at, self.down[view, at], self.right[view, at])
        return x, self.images.labels[at], self.answers[view, at].float()


def with_answers(images: Augmented, folder: Path) -> Answered:
    """Answers that are in the folder are taken from there, the others computed."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        down, right = (torch.stack(x) for x in zip(*(images.draw(len(images)) for _ in range(VIEWS)), strict=True))
    files = [folder / f"{view}.pt" for view in range(VIEWS)]
    missing = [view for view, file in enumerate(files) if not file.exists()]
    nets = [fuse(images.load.resnet_cifar10(d).eval()).to(memory_format=torch.channels_last) for d in DEPTHS if missing]
    for view in tqdm(missing, desc="teachers' answers", disable=not missing):
        part = files[view].with_suffix(".part")
        torch.save(_answers(nets, images, down[view], right[view]), part)
        part.rename(files[view])
    return Answered(images, down, right, torch.stack([torch.load(file) for file in files]))


@torch.no_grad()
def _answers(nets: Sequence[nn.Module], images: Augmented, down: Tensor, right: Tensor) -> Tensor:
    found = []
    for at in torch.arange(len(images)).split(128):
        x = images.take(at, down[at], right[at])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(sum(net(x).float() for net in nets) / len(nets))
    return torch.cat(found).half()
