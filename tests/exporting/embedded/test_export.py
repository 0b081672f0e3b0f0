"""`bough.export(target=)` and `bough export --target`."""

import json
import sys

import pytest
import torch
from torch import nn

import bough
from bough.cli import main
from bough.errors import ExportError
from bough.exporting.embedded.errors_by_op import ratio


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 3)), torch.randn(1, 5)


def batches():
    return [torch.randn(8, 5, generator=torch.Generator().manual_seed(1))]


def test_the_command_line_and_the_api_write_the_same_folder(tmp_path, monkeypatch, capsys):
    model, x = build()
    made = bough.export(model, x, tmp_path / "api", target="cortex-m", data=batches())
    reference = f"{__name__}:"
    words = ["bough", "export", f"{reference}build", "--target", "cortex-m", "--data", f"{reference}batches"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "cli"), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["arena_bytes"] == made.arena.size
    for name in ("model.c", "model.h", "test/vectors.c"):
        assert (tmp_path / "api" / name).read_text() == (tmp_path / "cli" / name).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "avr"}, "'cortex-m'"),
        ({"target": "cortex-m", "dynamic_batch": True}, "dynamic_batch"),
        ({"target": "cortex-m", "path": "c.onnx"}, "folder"),
        ({"path": "net.onnx", "data": [torch.randn(2, 5)]}, "target='cortex-m'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    model, x = build()
    given = {"path": "c", **options}
    with pytest.raises(ExportError, match=message):
        bough.export(model, x, tmp_path / given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_needs_no_data(tmp_path):
    pytest.importorskip("torchao", reason="needs torchao, which bough.quantize is built on")
    model, x = build()
    quantized = bough.quantize(model, x, batches())
    made = bough.export(quantized, x, tmp_path / "c", target="cortex-m")
    assert made.calibrated == ()
    assert made.sqnr > 25


def test_a_program_that_lost_the_signal_says_where(tmp_path):
    """The second convolution's results are smaller than the least scale; its activation is fused into it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4, bias=False)
    )
    x, data = torch.randn(1, 3, 12, 12), [torch.randn(8, 3, 12, 12)]
    fine = bough.export(net, x, tmp_path / "fine", target="cortex-m", data=data)
    assert (fine.warnings, "warning" in str(fine)) == ((), False)
    with torch.no_grad():
        net[2].weight *= 1e-9
        net[2].bias *= 1e-9
    lost = bough.export(net, x, tmp_path / "lost", target="cortex-m", data=data)
    assert lost.sqnr < 10
    (text,) = lost.warnings
    assert "relu in module '3'" in text
    assert str(lost).startswith(f"warning: {text}\n")
    assert json.loads((tmp_path / "lost" / "model.json").read_text())["warnings"] == [text]
    assert ratio(0.0, 1.0) == float("-inf")
