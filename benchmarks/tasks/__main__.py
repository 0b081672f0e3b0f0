"""Train the models of the benchmarks: `python -m benchmarks.tasks --data PATH [NAME ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.cifar import load_module
from benchmarks.tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TASKS), metavar="NAME", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds load.py")
    parser.add_argument("--test", type=int, default=10_000, help="test samples, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if unknown := set(given.names) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    torch.set_num_threads(given.threads)
    load = load_module(given.data)
    for name in given.names:
        task = TASKS[name](load, given.test)
        print(name, task.measure(task.model), f"validation: {task.choose(task.model):.4g}", flush=True)


if __name__ == "__main__":
    main()
