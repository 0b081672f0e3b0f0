"""Latency and energy of models, measured on the machine at hand."""

from bough.measuring.device import device_name
from bough.measuring.differences import Tensors, largest_error, signal_to_noise
from bough.measuring.energy import calibrate
from bough.measuring.latency import Latency, latencies, latency
from bough.measuring.runners import eval_mode, runner

__all__ = [
    "Latency", "Tensors", "calibrate", "device_name", "eval_mode", "largest_error", "latencies", "latency", "runner",
    "signal_to_noise",
]  # fmt: skip
