"""The example of docs/microcontrollers.md runs."""

import pytest

from tests import pages
from tests.exporting.embedded.nets import COMPILER, run_make


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) on this machine")
def test_the_example_builds_and_gives_the_bytes_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = pages.run("microcontrollers.md")
    made, small, done = names["made"], names["small"], names["done"]
    assert made.calibrated
    assert run_make(tmp_path / "firmware", "test")["equal"] == 100
    assert small.flash <= 0.8 * 1024 < made.flash
    assert small.arena.size <= 2.2 * 1024
    assert done.footprint.arena <= 2 * 1024
