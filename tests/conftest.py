"""One thread for each test process; hypothesis profiles: `pytest --hypothesis-profile=thorough` searches longer."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile("default")
