"""`bough search`: a front in a folder, its models as checkpoints, bad options told."""

import json

import pytest

import bough
from bough.errors import SearchError
from tests.searching.problem import X, build, closeness
from tests.test_cli import run


def model():
    return build(), X[:1]


def metric(net):
    return {"closeness": closeness(net), "first": net[0].out_features}


WORDS = ["search", "tests.searching.test_command:model", "--evaluate", "tests.searching.test_command:metric"]


def test_the_front_and_its_models(tmp_path):
    words = [*WORDS, "--out", str(tmp_path), "--importance", "l2", "--trials", "7", "--objective", "closeness=max", "--json"]
    words += ["--objective", "macs=min", "--at-least", "first=2"]
    found = json.loads(run(*words))
    assert len(found["points"]) == 7
    assert found["plot"] == str(tmp_path / "front.png")
    assert json.loads((tmp_path / "front.json").read_text())["front"] == found["front"]
    points = {p["number"]: p for p in found["points"]}
    assert [f"{tmp_path}/front/{n:04d}" for n in found["front"]] == found["saved"]
    for number, folder in zip(found["front"], found["saved"], strict=True):
        assert closeness(bough.load(folder, build, X[:1])) == points[number]["metrics"]["closeness"]
    page = (tmp_path / "report.html").read_text()
    assert found["report"] == str(tmp_path / "report.html")
    assert page.count("<circle") == 2 * sum(p["error"] is None for p in found["points"])  # against MACs, and peak memory
    assert page.count("<circle class=front") == 2 * len(found["front"])
    assert all(f"<td class=n>{n}</td>" in page for n in found["front"])
    again = json.loads(run(*words))
    assert again["points"] == found["points"]
    more = run(*(w for w in words if w != "--json"), "--trials", "8")
    assert "8 candidates evaluated" in more


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "closeness"], "--objective 'closeness': write NAME=max or min, each name once"),
        (["--at-most", "first=many"], "--at-most 'first=many': write NAME=a number"),
        (["--method", "grid"], "method='grid' is unknown"),
        (["--budget", "macs=50%", "--objective", "speed=max"], "objectives names 'speed'"),
        (["--storage", "ftp://x"], "use postgresql://"),
    ],
)
def test_wrong_options(options, said, tmp_path):
    with pytest.raises(SearchError, match=said):
        run(*WORDS, "--out", str(tmp_path), *options)
