"""docs/quantizing.md: its examples run."""

import pytest

from tests import pages

pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")


def test_the_examples_run():
    assert pages.run("quantizing.md")["done"].signal_to_noise >= 30
