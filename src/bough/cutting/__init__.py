"""A plan made true: slices, and the integers that go with them."""

from bough.cutting.cut import cut, cut_, mask
from bough.cutting.optimizer import transfer_optimizer
from bough.cutting.verify import Verification, verify

__all__ = ["Verification", "cut", "cut_", "mask", "transfer_optimizer", "verify"]
