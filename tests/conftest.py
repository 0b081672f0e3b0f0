"""Hypothesis profiles: `pytest --hypothesis-profile=thorough` searches longer."""

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile("default")
