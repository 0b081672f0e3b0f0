"""Calibration data where the user has none: inputs that a model's own batch norms describe."""

from bough.calibration.synthetic import synthesize

__all__ = ["synthesize"]
