"""The demonstration: real digits, a small residual net, a quarter of the MACs."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import bough
from bough.errors import ModelReferenceError
from bough.measuring import latencies
from bough.report.page import page as make_page
from bough.report.tables import costs_table, show
from bough.storage import write_text

SHARE = "25%"


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def digits_net() -> nn.Module:
    """A residual net for 8x8 images of digits."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), Block(24),
        nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(), Block(48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [N, 1, 8, 8] in 0..1 and labels [N]; a quarter is for testing."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """scikit-learn's handwritten digits (1,797 scans from the UCI collection)."""
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ModelReferenceError("the demo needs scikit-learn: pip install 'bough[demo]'") from None
    data = load()
    parts = train_test_split(data.images, data.target, test_size=0.25, random_state=0, stratify=data.target)
    images, test_images = (torch.tensor(p, dtype=torch.float32)[:, None] / 16 for p in parts[:2])
    return Digits(images, torch.tensor(parts[2]), test_images, torch.tensor(parts[3]))


def fit(model: nn.Module, data: Digits, epochs: int, rate: float, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Trains with shifts of up to one pixel, one-cycle learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = -(-len(data.images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.images)).split(64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            images = data.images[batch].roll(shift, (2, 3))
            optimizer.zero_grad()
            loss(model(images), data.labels[batch], images).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Per cent of the test images."""
    return 100 * float((model(data.test_images).argmax(1) == data.test_labels).float().mean())


def once(seed: int, data: Digits) -> dict[str, Any]:
    """Train, prune, fine-tune from the dense net's answers, verify, save and reload."""
    torch.manual_seed(seed)
    model = digits_net()
    fit(model, data, 20, 4e-3, lambda y, labels, _: F.cross_entropy(y, labels))
    result = bough.prune(model, data.test_images[:1], bough.Budget(macs=SHARE), importance=bough.importance.GroupNorm())
    cut_accuracy = accuracy(result.model, data)

    def distillation(y: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = model(images)
        soft = F.kl_div(F.log_softmax(y / 2, 1), F.log_softmax(wanted / 2, 1), log_target=True, reduction="batchmean")
        return F.cross_entropy(y, labels) + 4 * soft

    fit(result.model, data, 30, 4e-3, distillation)
    with tempfile.TemporaryDirectory() as folder:
        bough.save(result, folder)
        again = bough.load(folder, digits_net).eval()
    with torch.inference_mode():
        identical = torch.equal(again(data.test_images), result.model(data.test_images))
    times = latencies({"before": model, "after": result.model}, data.test_images[:1], repeats=60)
    row = {
        name: {"accuracy": accuracy(m, data), **cost.to_dict(), "latency_ms": 1e3 * times[name].median}
        for name, m, cost in (("before", model, result.plan.original), ("after", result.model, result.plan.cost))
    }
    return {
        "seed": seed,
        **row,
        "cut": cut_accuracy,
        "error": result.report.max_error,
        "identical": identical,
        "plan": result.plan,
    }


def run(path: Path, seeds: int, as_json: bool) -> None:
    """Runs the demonstration and prints and writes what it found."""
    data = load_digits()
    turns = range(seeds) if as_json else track(range(seeds), "train, prune, fine-tune")
    found = [once(seed, data) for seed in turns]
    rows = {n: {k: _mean([f[n][k] for f in found]) for k in found[0][n]} for n in ("before", "after")}
    gained = [f["after"]["accuracy"] - f["before"]["accuracy"] for f in found]
    notes = [
        f"{f'Means over {seeds} seeds' if seeds > 1 else 'One seed'}. Accuracy: {', '.join(map(change, gained))}.",
        f"After the cut, before fine-tuning: {', '.join(f'{x:.1f}' for x in (f['cut'] for f in found))} %.",
        f"Masked original against cut model, float64: largest error {max(f['error'] for f in found):.1e}.",
        f"Saved and reloaded: {'bit-identical' if all(f['identical'] for f in found) else 'NOT identical'}.",
    ]
    write_text(path, make_page("bough: digits at a quarter of the MACs", rows, found[-1]["plan"], notes))
    if as_json:
        report = {**rows, "points_gained": gained, "verify_error": max(f["error"] for f in found)}
        typer.echo(json.dumps({**report, "identical": all(f["identical"] for f in found), "page": str(path)}))
        return
    show(costs_table(rows))
    for note in notes:
        typer.echo(note)
    typer.echo(f"Widths before and after: {path}")


def change(points: float) -> str:
    """Return a change of accuracy in words.

    Example:
        >>> change(0.444), change(-1.0), change(0.001)
        ('0.44 points gained', '1.00 points lost', 'unchanged')
    """
    if abs(points) < 0.005:
        return "unchanged"
    return f"{abs(points):.2f} points {'gained' if points > 0 else 'lost'}"


def _mean(values: list[float]) -> float:
    mean = statistics.mean(values)
    return mean if isinstance(values[0], float) else round(mean)
