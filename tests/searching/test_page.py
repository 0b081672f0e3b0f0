"""The examples of docs/search.md run, and what it lists is there."""

import re

from bough.searching import METHODS, START
from tests import pages


def test_the_examples():
    names = pages.run("search.md")
    found = names["found"]
    assert len(found.points) == 24
    assert names["plan"].cost.macs <= 0.4 * names["plan"].original.macs
    assert found.best.values[0] >= max(p.values[0] for p in found.points if p.origin.startswith("start"))
    assert names["small"][0].out_features == found.best.counts["0"]
    assert len(names["front"].points) == 20


def test_what_it_lists():
    page = pages.text_of("search.md")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(METHODS)
    assert f"start={START}".replace("'", '"') in page
