"""The examples of docs/recovery.md run."""

import pytest

from tests import pages


def test_the_page():
    pytest.importorskip("accelerate")
    assert len(pages.blocks("recovery.md")) > 6
    names = pages.run("recovery.md")
    assert names["tickets"][-1].kept == pytest.approx(0.25, abs=0.01)
