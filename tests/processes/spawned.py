"""Several processes of torch.distributed that run the same functions."""

import pickle
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_RUN = """
import pickle, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
torch.set_num_threads(1)
folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = f"file://{folder}/store"
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=timedelta(seconds=300))
results = []
for function, arguments in pickle.loads((folder / "calls").read_bytes()):
    try:
        results.append(function(rank, *arguments))
    except Exception as error:
        results.append(f"{type(error).__name__}: {error}")
(folder / f"results-{rank}").write_bytes(pickle.dumps(results))
distributed.destroy_process_group()
"""


def in_processes(count, folder, calls, timeout=600):
    """Run calls, one after the other, in each of `count` gloo processes.

    Args:
        count: number of processes.
        folder: an empty folder.
        calls: (function of a module, arguments after the rank).
        timeout: seconds.

    Returns:
        For each call, what it returned in each process; an error as text.
    """
    (folder / "calls").write_bytes(pickle.dumps(calls))
    command = [sys.executable, "-c", _RUN, str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(count)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    results = [pickle.loads((folder / f"results-{rank}").read_bytes()) for rank in range(count)]
    return list(zip(*results, strict=True))
