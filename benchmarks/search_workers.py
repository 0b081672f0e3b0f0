"""How much faster two workers get through one study than one: in a folder, and in PostgreSQL where it is installed.

    python -m benchmarks.search_workers --trials 40 --pause 1.0

Each candidate of a small MLP is cut and evaluated, and the evaluation then waits for `--pause` seconds, as if it ran on a
device of the worker's own. So this measures what sharing a study costs, and not how many cores this machine has. Candidates a
minute are counted from the begin of the first candidate to the end of the last one; the median of `--repeats` runs counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import harness

RESULTS = Path(__file__).parent / "results" / "search_workers.json"


def work(storage: str, name: str, trials: int, pause: float, log: Path) -> None:
    """Be one worker; write the begin and the end of each evaluation into `log`."""
    import bough
    from tests.searching.problem import X, build, closeness

    def evaluated(model: Any) -> float:
        begin = time.time()
        value = closeness(model)
        time.sleep(pause)
        with open(log, "a") as file:
            file.write(f"{begin} {time.time()}\n")
        return value

    bough.search(build(), X[:1], evaluated, importance="l2", trials=trials, storage=storage, name=name)


def rate(storage: str, name: str, workers: int, given: argparse.Namespace) -> float:
    """Return the candidates a minute that some workers together evaluate."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(i) for i in range(workers)]
        words = ["--trials", str(given.trials), "--pause", str(given.pause), "--worker", storage, "--name", name]
        commands = [[sys.executable, "-m", "benchmarks.search_workers", *words, "--log", str(log)] for log in logs]
        running = [subprocess.Popen(command, cwd=harness.ROOT) for command in commands]
        if any(process.wait() for process in running):
            raise RuntimeError("a worker failed")
        own = [[tuple(map(float, line.split())) for line in log.read_text().splitlines()][1:] for log in logs]  # dense left out
        spans = [span for lines in own for span in lines]
        started = max(min(begin for begin, _ in lines) for lines in own)  # when all of them work
        counted = [end for begin, end in spans if begin >= started]
        return 60 * len(counted) / (max(counted) - started)


@contextmanager
def storages() -> Iterator[dict[str, str]]:
    """Give the address of a folder, and of a database where there is a server."""
    from tests.searching import postgres

    with tempfile.TemporaryDirectory() as folder:
        if postgres.programs() is None:
            yield {"folder": folder}
            return
        with postgres.server() as url:
            yield {"folder": folder, "postgresql": url}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.name, given.trials, given.pause, given.log)
        return
    results: dict[str, Any] = {"trials": given.trials, "pause_s": given.pause, "about": harness.about()}
    for repeat in range(given.repeats):
        with storages() as there:
            for name, base in there.items():
                for workers in (1, 2):
                    found = rate(base, f"study-{workers}", workers, given)
                    results.setdefault(name, {}).setdefault(f"workers_{workers}", []).append(round(found, 1))
                print(repeat, name, results[name], flush=True)
    for name in ("folder", "postgresql"):
        if name in results:
            one, two = (statistics.median(results[name][f"workers_{n}"]) for n in (1, 2))
            results[name]["times_as_many_candidates_a_minute"] = round(two / one, 3)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
