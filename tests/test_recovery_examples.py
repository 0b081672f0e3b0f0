"""The examples of docs/recovery.md and of the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import bough.recovery
from tests import pages

MODULES = ["bough.planning.compose", *(m.name for m in pkgutil.walk_packages(bough.recovery.__path__, "bough.recovery."))]


def test_the_page():
    pytest.importorskip("accelerate")
    assert len(pages.blocks("recovery.md")) > 6
    names = pages.run("recovery.md")
    assert names["tickets"][-1].kept == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
