"""One thread for each test process, the same random weights in each run, and the CPU alone: tests/other_devices is for GPUs.

`pytest --hypothesis-profile=thorough` searches longer.
"""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
torch.set_num_threads(1)
torch.manual_seed(0)  # of what modules make as they are imported
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before a test and its fixtures; its own start is another one in each process."""
    torch.manual_seed(0)
