"""Is a fine-tune that is killed the same as one that is not, and are two processes the same as one?

    python -m benchmarks.resume --kills 10

Handwritten digits with random shifts. *Killed*: a pruned residual net with batch norm is fine-tuned with AdamW in a process
that is killed (SIGKILL) at random moments and started again, until it has been killed so often; its weights and log are held
against those of a run that nobody killed, bit for bit. *Processes*: a net without batch norm is distilled in float64 by one
process and by two that share each batch (`accelerate launch`, gloo, CPU); their loss curves are compared. accelerate's command
imports timm where it is installed, and fails where timm's torchvision does: then use an environment of `pip install
'bough[demo,train]'` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks import harness
from bough.recovery.training import read_log

EPOCHS, BATCH = 6, 64


class Shifted(Dataset[Any]):
    """Digits, each moved by up to one pixel at random."""

    def __init__(self, dtype: torch.dtype) -> None:
        from bough.cli.demo import load_digits

        data = load_digits()
        self.images, self.labels = data.images[:1280].to(dtype), data.labels[:1280]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        shift = torch.randint(-1, 2, (2,)).tolist()
        return self.images[i].roll(shift, (1, 2)), self.labels[i]


def killed(folder: str) -> None:
    """The fine-tune that may be killed."""
    import bough
    from bough.cli.demo import digits_net
    from bough.recovery import Training, finetune

    torch.manual_seed(0)
    data = Shifted(torch.float32)
    small = bough.prune(digits_net().eval(), data.images[:1], bough.Budget(macs="25%")).model

    def accuracy(model: nn.Module) -> float:
        return float((model(data.images[:256]).argmax(1) == data.labels[:256]).float().mean())

    finetune(small, data, Training(epochs=EPOCHS, lr=4e-3, batch_size=BATCH, folder=folder, save_every=1), evaluate=accuracy)


def shared(folder: str) -> None:
    """The distillation that one process or two run."""
    from bough.recovery import Training, distill

    torch.manual_seed(0)
    small, model = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 10)).double() for n in (24, 48)
    )  # fmt: skip
    distill(small, model, Shifted(torch.float64), Training(epochs=EPOCHS, lr=4e-3, batch_size=BATCH, folder=folder))
    Path(folder, "processes").write_text(os.environ.get("WORLD_SIZE", "1"))


def start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=harness.ROOT, env=environment, **quiet)  # type: ignore[call-overload]


def kill_often(place: Path, kills: int, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    if start(["benchmarks.resume", "--child", "killed", str(place / "whole")]).wait():
        raise SystemExit("the run that nobody kills failed")
    steps = len([line for line in read_log(place / "whole" / "log.jsonl") if "lr" in line])
    chance, log, at = random.Random(seed), place / "killed" / "log.jsonl", []
    for wanted in sorted(chance.sample(range(1, steps - 1), kills)):
        child = start(["benchmarks.resume", "--child", "killed", str(place / "killed")])
        while child.poll() is None and len(read_log(log)) < wanted:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)  # somewhere in a step, or while its state is written
        if child.poll() is None:
            child.kill()
            at.append(len(read_log(log)))
        child.wait()
    if start(["benchmarks.resume", "--child", "killed", str(place / "killed")]).wait():
        raise SystemExit("the last resumed run failed")
    from bough.storage import read_state

    a, b = (read_state(place / n / "state.safetensors")["model"] for n in ("whole", "killed"))
    return {
        "steps": steps, "kills": len(at), "killed_after_log_lines": at, "seconds": round(time.perf_counter() - begun, 1),
        "weights_equal": a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a),
        "logs_equal": read_log(place / "whole" / "log.jsonl") == read_log(log),
    }  # fmt: skip


def compare_processes(place: Path) -> dict[str, Any]:
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    launch += ["--dynamo_backend=no"]  # what it calls multi_gpu is torchrun, with ACCELERATE_USE_CPU on CPUs
    for name, before in (("one", []), ("two", launch)):
        words = [*before, *(["-m"] if before else []), "benchmarks.resume", "--child", "shared", str(place / name)]
        if start(words).wait():
            raise SystemExit(f"the run of {name} failed")
    one, two = ([line["loss"] for line in read_log(place / n / "log.jsonl")] for n in ("one", "two"))
    return {
        "processes": [int((place / n / "processes").read_text()) for n in ("one", "two")],
        "lines": len(one), "first_loss": one[0], "last_loss": one[-1],
        "largest_difference": max(abs(a - b) for a, b in zip(one, two, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["processes", "killed"], choices=["processes", "killed"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "benchmarks" / "results" / "resume.json")
    parser.add_argument("--child", nargs=2)
    given = parser.parse_args()
    if given.child:
        torch.set_num_threads(1)
        {"killed": killed, "shared": shared}[given.child[0]](given.child[1])
        return
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts:
            place = Path(folder) / part
            made = kill_often(place, given.kills, given.seed) if part == "killed" else compare_processes(place)
            found[part] = {**made, "seed": given.seed, "about": harness.about()}
            print(part, json.dumps(made, indent=1))
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
