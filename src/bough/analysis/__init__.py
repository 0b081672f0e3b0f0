"""Analyses of a model that cut copies of it and evaluate them."""

from bough.analysis.sensitivity import sensitivity

__all__ = ["sensitivity"]
