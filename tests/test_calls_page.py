"""The examples of docs/calls.md run, and what they show is so."""

import torch

import bough
from tests import pages


def test_the_examples():
    names = pages.run("calls.md")
    small, report = names["result"].model, names["result"].report
    assert report.equal
    assert {f"heads.{t}.weight" for t in "ab"} <= {layer.name for layer in names["result"].refit.layers}
    with torch.no_grad():
        assert small(names["x"], task="b").shape == (2, 7)
    assert names["streamed"].report.calls == 4  # each of the two three times in a row, too
    assert names["streamed"].report.equal
    assert names["streamed"].model.a.out_features < 16
    kept = names["distilled"].plan.kept
    assert kept["teacher.0.weight"] == kept["student.0.weight"]


def test_the_first_call_counts_as_the_page_says():
    names = pages.run("calls.md")
    model, x, both = names["model"], names["x"], names["both"]
    one, other, sums = (bough.trace(model, c).cost().macs for c in (x, bough.Call(x, task="b"), bough.Call(x, method=both)))
    assert sums == one + other
