"""Latency and energy of models, measured on the machine at hand."""

from bough.measuring.device import device_name
from bough.measuring.energy import calibrate
from bough.measuring.latency import Latency, latencies, latency
from bough.measuring.runners import eval_mode, runner

__all__ = ["Latency", "calibrate", "device_name", "eval_mode", "latencies", "latency", "runner"]
