"""Latency, energy and quality of models, measured on the machine at hand."""

from bough.measuring.device import device_name
from bough.measuring.differences import Tensors, largest_error, signal_to_noise
from bough.measuring.energy import calibrate
from bough.measuring.latency import Latency, latencies, latency
from bough.measuring.perplexity import Perplexity, perplexity
from bough.measuring.runners import eval_mode, runner
from bough.measuring.zero_shot import zero_shot

__all__ = [
    "Latency", "Perplexity", "Tensors", "calibrate", "device_name", "eval_mode", "largest_error", "latencies", "latency",
    "perplexity", "runner", "signal_to_noise", "zero_shot",
]  # fmt: skip
