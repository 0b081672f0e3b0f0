"""docs/deploying.md: its examples run."""

import pytest

from tests import pages

pytest.importorskip("onnxscript", reason="export to ONNX needs onnxscript: pip install -e .[onnx]")


def test_the_examples_run():
    assert pages.run("deploying.md")["done"].error < 1e-4
