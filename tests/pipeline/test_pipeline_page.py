"""docs/pipeline.md: its examples run."""

import pytest

from tests import pages

pytest.importorskip("accelerate", reason="training needs accelerate: pip install -e .[train]")


def test_the_examples_run():
    assert pages.run("pipeline.md")["done"].stages[0].name == "start"
