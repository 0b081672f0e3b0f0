"""The examples of docs/budgets.md run, and what it lists is there."""

import re
from dataclasses import fields

import bough
from bough.measuring import Latency
from bough.planning.alignment import ALIGNMENTS
from bough.planning.allocation import ALLOCATORS
from tests import pages


def test_the_examples(monkeypatch):
    """Seconds are made up: nothing here is timed against a target."""

    def made_up(model, *_, **__):
        return Latency(1e-9 * sum(p.numel() for p in model.parameters()), 0.0, 1)

    monkeypatch.setattr("bough.targeting.latency_target.latency", made_up)
    names = pages.run("budgets.md")
    assert names["plan"].cost.macs <= 0.5 * names["plan"].original.macs
    assert names["plan"].cost.peak_memory <= 100 * 1024
    assert names["whole"].frozen == {"0": "ignored: BatchNorm2d"}
    assert {d for dims in names["first"].removed.values() for d in dims} == {0, 1}
    assert "3.bias" not in names["first"].removed
    assert names["result"].latency <= 0.7 * made_up(names["model"]).median


def test_what_it_lists():
    page = pages.text_of("budgets.md")
    listed = set(re.findall(r"^\| `\"?(\w+)\"?` \|", page, re.MULTILINE))
    assert listed == {f.name for f in fields(bough.Budget)} - {"precision"} | ALLOCATORS.keys()
    assert set(re.findall(r'(?:round_to=|, )`?"([\w-]+)"`', page)) & ALIGNMENTS.keys() >= {"a100-fp16", "neon"}
