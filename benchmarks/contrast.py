"""Structured pruning beside unstructured and 2:4 sparsity: non-zeros, files, measured latency, accuracy without training.

    python -m benchmarks.contrast --data ../shared/data --models resnet20 stories260k --clock cpu
    python -m benchmarks.contrast --data ../shared/data --models resnet20 --images 3200 --epochs 2 --seeds 2 \
        --keeps 0.5 0.25 0.1 --methods magnitude sparsegpt --clock cpu

ResNet-20 on CIFAR-10 (pretrained, accuracy in percent) and stories260K, a Llama (perplexity on
stories that calibration has not); one thread, batch 1. Structured cuts are refitted and the others chosen on the same
unlabelled data. Nothing is trained unless --images says on how many images of CIFAR-10: then all variants are, alike, by the
defaults of `finetune` in bfloat16, and the rows are those of NAME_trained. A killed run resumes from --cache.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from benchmarks.cifar import Augmented, batches, images, load_module, predicted, test_images
from tests.zoo.shim import declare_torchvision_ops

Task = tuple[nn.Module, Any, list[Any], Callable[[nn.Module], float], dict[str, Any]]


def resnet20(load: Any, samples: int, tests: int) -> Task:
    x, y = test_images(load, tests)
    calibration = images(load.cifar10("train")[0][:samples], load)
    options = {"tolerance": 1.0, "ignore": ["conv1"]}

    def accuracy(model: nn.Module) -> float:
        return 100 * float((predicted(model, x) == y).float().mean())

    return load.resnet_cifar10(20), x[:1].clone(), list(calibration.split(64)), accuracy, options


def stories260k(load: Any, samples: int, tests: int) -> Task:
    declare_torchvision_ops()
    tokenizer, length = load.Tok512(), 128

    def encoded(stories: Sequence[str]) -> Iterator[torch.Tensor]:
        for story in stories:
            yield torch.tensor([[1, *tokenizer.encode(story.strip()[: 4 * length])]])

    stories = load.text("tinystories_train_head_197k").split("Once upon a time")[1:]
    test = list(encoded([f"Once upon a time{s}" for s in stories[-(tests // 50) :]]))
    calibration = [ids for ids in encoded([f"Once upon a time{s}" for s in stories[: samples // 8]]) if ids.shape[1] >= length]

    @torch.no_grad()
    def perplexity(model: nn.Module) -> float:
        total, count = 0.0, 0
        for ids in test:
            logits = model.eval()(input_ids=ids, use_cache=False).logits[0, :-1]
            total += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        return math.exp(total / count)

    whole = torch.cat([ids[:, :length] for ids in calibration])
    batches = [{"input_ids": part, "use_cache": False} for part in whole.split(8)]
    options = {"lower_is_better": True, "tolerance": 0.5}
    return load.stories260k(), {"input_ids": whole[:1, :64].clone(), "use_cache": False}, batches, perplexity, options


MODELS = {"resnet20": resnet20, "stories260k": stories260k}


def training(load: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a contrast with training on CIFAR-10."""
    from bough.recovery import Training

    return {
        "train": batches(Augmented(load, args.images), 64),
        "training": Training(epochs=args.epochs, precision="bf16"),
        "seeds": tuple(range(args.seeds)),
    }


def main() -> None:
    import bough

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.75, 0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", help="of unstructured sparsity; all unless given")
    parser.add_argument("--images", type=int, default=0, help="training images of resnet20; 0: no training")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/bough-contrast"))
    parser.add_argument("--out", type=Path, default=harness.ROOT / "benchmarks/results/contrast.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = load_module(args.data)
    rows: dict[str, Any] = json.loads(args.out.read_text())["models"] if args.out.exists() else {}
    for name in args.models:
        begin = time.perf_counter()
        if args.images and name != "resnet20":
            parser.error("--images is for --models resnet20")
        model, inputs, calibration, evaluate, options = MODELS[name](load, args.samples, args.tests)
        if args.images:
            name, options = f"{name}_trained", {**options, **training(load, args)}
        found = bough.contrast(
            model, inputs, evaluate, keeps=args.keeps, data=calibration, repeats=args.repeats, clock=args.clock, progress=True,
            folder=args.cache / name, methods=args.methods, **options,
        )  # fmt: skip
        print(name, found, sep="\n", flush=True)
        about = {"samples": args.samples, "tests": args.tests, "repeats": args.repeats, "clock": args.clock, "seed": 0}
        if args.images:
            about |= {"images": args.images, "epochs": args.epochs, "seeds": args.seeds}
        rows[name] = {**found.to_dict(), "about": {**about, "wall_s": round(time.perf_counter() - begin, 1), **harness.about()}}
        args.out.write_text(json.dumps({"models": rows}, indent=1) + "\n")
        found.plot(args.out.with_name(f"contrast_{name}.png"))


if __name__ == "__main__":
    main()
