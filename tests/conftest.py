"""One thread for each test process, and the CPU alone: tests/other_devices is for GPUs.

`pytest --hypothesis-profile=thorough` searches longer.
"""

import os

import torch
from hypothesis import settings

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
torch.set_num_threads(1)
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile("default")
