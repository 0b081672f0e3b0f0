"""A plan made true: slices, and the integers that go with them."""

from bough.cutting.cut import cut, cut_, mask
from bough.cutting.optimizer import transfer_optimizer
from bough.cutting.rebuild import rebuild
from bough.cutting.verification import Verification
from bough.cutting.verify import verify

__all__ = ["Verification", "cut", "cut_", "mask", "rebuild", "transfer_optimizer", "verify"]
