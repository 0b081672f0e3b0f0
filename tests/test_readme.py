"""The blocks of Python in the README run; of the overview of functions, each call has the arguments that it names."""

import ast
import inspect
import re
from pathlib import Path

import torch
from torch import nn

import bough

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FIRST, *_ = BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.a = nn.Linear(16, 4)

    def encode(self, x):
        return self.stem(x).mean((2, 3))

    def forward(self, x, task="a"):
        return getattr(self, task)(self.encode(x))


class TwoHeads(MyModel):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(16, 3)


def block_with(word):
    return next(b for b in BLOCKS if word in b)


def test_the_first_block_saves_what_another_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"MyModel": MyModel, "build_model": MyModel, "batches": [torch.randn(2, 3, 32, 32) for _ in range(2)]}
    exec(FIRST, names)
    (tmp_path / "small").rename(tmp_path / "first")
    exec(block_with("bough.load("), names)
    assert torch.equal(names["small"].a.weight, names["result"].model.a.weight)


def test_several_calls_are_cut_together():
    names = {"bough": bough, "model": TwoHeads().eval(), "x": torch.randn(2, 3, 32, 32), "budget": bough.Budget(params="60%")}
    exec(block_with("bough.Call(x)"), names)
    assert names["result"].report.equal
    assert names["result"].report.calls == 3


def test_functions_of_the_overview_take_what_it_gives_them():
    found = [n for n in ast.walk(ast.parse(block_with("graph.layers"))) if isinstance(n, ast.Call)]
    names = [ast.unparse(n.func) for n in found]
    calls = [(n, name) for n, name in zip(found, names, strict=True) if re.fullmatch(r"bough(\.\w+)+", name)]
    assert len(calls) > 12
    for call, name in calls:
        function = eval(name)
        inspect.signature(function).bind(*call.args, **{k.arg: k.value for k in call.keywords})
