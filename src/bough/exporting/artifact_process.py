"""The process that runs an exported file once for its outputs and then for its latency; started by `artifact.run_artifact`.

It is run by its path, so it imports neither bough nor, for ONNX, torch: its memory is that of the runtime and the model.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SECONDS = 2.0  # that timed runs may take in all
Arrays = dict[str, np.ndarray]


def memory(field: str) -> int:
    """Return a field of this process's memory in bytes, "VmRSS" (now) or "VmHWM" (the most so far); 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def load_onnx(file: str, feed: Arrays, threads: int) -> Callable[[], Arrays]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    unknown = {i.name for i in session.get_inputs()} ^ feed.keys()
    if unknown:
        raise ValueError(f"the file and the example inputs do not share the inputs {', '.join(sorted(unknown))}")
    names = [o.name for o in session.get_outputs()]
    return lambda: dict(zip(names, session.run(names, feed), strict=True))


def load_pte(file: str, feed: Arrays, threads: int) -> Callable[[], Arrays]:
    import torch
    from executorch.kernels import quantized  # noqa: F401 - registers ops on quantized tensors that no delegate takes
    from executorch.runtime import Runtime, Verification

    torch.set_num_threads(threads)
    method = Runtime.get().load_program(Path(file), verification=Verification.InternalConsistency).load_method("forward")
    if method is None:
        raise ValueError("the file has no method forward")
    tensors = [torch.from_numpy(array) for array in feed.values()]
    return lambda: {str(i): t.numpy().copy() for i, t in enumerate(method.execute(tensors))}


def load_tflite(file: str, feed: Arrays, threads: int) -> Callable[[], Arrays]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(file, num_threads=threads)
    interpreter.allocate_tensors()
    taken = sorted(interpreter.get_input_details(), key=lambda d: _number(d["name"]))
    given = sorted(interpreter.get_output_details(), key=lambda d: _number(d["name"]))
    if len(taken) != len(feed):
        raise ValueError(f"the file takes {len(taken)} inputs, the example inputs are {len(feed)}")

    def run() -> Arrays:
        for detail, array in zip(taken, feed.values(), strict=True):
            interpreter.set_tensor(detail["index"], _stored(array, detail))
        interpreter.invoke()
        return {str(i): _real(interpreter.get_tensor(d["index"]).copy(), d) for i, d in enumerate(given)}

    return run


def _stored(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Return an input in the type of the file, quantized where the file takes quantized integers."""
    kind, (scale, zero_point) = np.dtype(detail["dtype"]), detail["quantization"]
    if not scale:
        return array.astype(kind)  # LiteRT has int32 for int64
    limits = np.iinfo(kind)
    stored: np.ndarray = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max).astype(kind)
    return stored


def _real(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Return an output of a file as real numbers, dequantized where the file gives quantized integers."""
    scale, zero_point = detail["quantization"]
    return array if not scale else np.asarray((array.astype(np.float32) - zero_point) * scale, np.float32)


def _number(name: str) -> int:
    """Return the number in a name such as "serving_default_args_1:0"."""
    digits = name.partition(":")[0].rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def main(file: str, inputs: str, outputs: str, repeats: int, threads: int) -> None:
    with np.load(inputs) as stored:
        feed = {name: stored[name] for name in stored.files}
    load, runtime = {
        "onnx": (load_onnx, "onnxruntime"), "pte": (load_pte, "executorch.runtime"),
        "tflite": (load_tflite, "ai_edge_litert.interpreter"),
    }[file.rpartition(".")[2]]  # fmt: skip
    __import__(runtime)
    before = memory("VmRSS")
    run = load(file, feed, threads)
    found = run()
    peak = memory("VmHWM")
    np.savez(outputs, **found)  # type: ignore[arg-type]
    times: list[float] = []
    while len(times) < repeats and sum(times) < _SECONDS:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
    median = statistics.median(times) if times else 0.0
    print(json.dumps({"median": median, "spread": high - low, "repeats": len(times), "peak": max(peak - before, 0)}))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
