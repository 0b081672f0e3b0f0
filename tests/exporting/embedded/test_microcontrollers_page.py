"""The example of docs/microcontrollers.md runs."""

import pytest

from tests import pages
from tests.exporting.embedded.nets import COMPILER, run_make


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) on this machine")
def test_the_example_builds_and_gives_the_bytes_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = pages.run("microcontrollers.md")["made"]
    assert made.calibrated
    assert run_make(tmp_path / "firmware", "test")["equal"] == 100
