"""Reconstruct: train the blocks of a cut model, one after the other, to give what the dense model's blocks give; no labels."""

from bough.recovery.reconstruct.reconstruct import Reconstructed, ReconstructedBlock, reconstruct

__all__ = ["Reconstructed", "ReconstructedBlock", "reconstruct"]
