"""The examples of docs/recovery.md and of the docstrings run."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import bough.recovery

MODULES = ["bough.planning.compose", *(m.name for m in pkgutil.walk_packages(bough.recovery.__path__, "bough.recovery."))]


def test_the_page():
    pytest.importorskip("accelerate")
    page = (Path(__file__).parent.parent / "docs" / "recovery.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 6
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["tickets"][-1].kept == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
