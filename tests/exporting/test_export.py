"""Exported files give what the model gives, or they are not written."""

import copy
import json

import pytest
import torch
from torch import nn

import bough
from bough.errors import ExportError, WriteError
from bough.exporting import run_artifact
from bough.measuring.differences import largest_error, signal_to_noise
from tests.exporting.models import Biased, Decides, Draws, Memory, Remembering, TwoInputs, convolutional
from tests.test_cli import run

pytest.importorskip("onnxscript", reason="export to ONNX needs onnxscript: pip install -e .[onnx]")
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small_net():
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)), torch.randn(1, 4)


def test_a_pruned_model_with_a_batch_that_varies(tmp_path):
    model = convolutional()
    small = bough.prune(model, IMAGES, bough.Budget(params="60%")).model.train()
    before = copy.deepcopy(small.state_dict())
    made = bough.export(small, IMAGES, tmp_path / "net.onnx", dynamic_batch=True)
    assert made.error <= 1e-5
    assert made.inputs == {"input": ["batch", 3, 8, 8]}
    assert made.outputs == {"output": ["batch", *model(IMAGES).shape[1:]]}
    assert made.size == (tmp_path / "net.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert b".py" not in made.path.read_bytes()  # no stack traces, which hold paths of this machine
    assert all(m.training for m in small.modules())
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    more = torch.randn(5, 3, 8, 8)
    found = run_artifact(made.path, {"input": more}).outputs["output"]
    with torch.no_grad():
        assert largest_error({"y": small.eval()(more)}, {"y": found}) <= 1e-5


def test_several_inputs_and_a_nested_output(tmp_path):
    inputs = {"tokens": torch.tensor([[1, 2, 6]]), "scale": torch.ones(3)}
    shapes = {"tokens": {0: "batch", 1: "length"}}
    longer = {"tokens": torch.tensor([[0, 3], [4, 4], [1, 5]]), "scale": torch.ones(3)}
    made = bough.export(TwoInputs(), inputs, tmp_path / "a.onnx", dynamic_shapes=shapes, more_inputs=[longer])
    assert list(made.inputs.values()) == [["batch", "length"], [3]]
    assert list(made.outputs) == ["hidden", "rest.choice", "rest.sums.0"]
    assert made.outputs["hidden"][:2] == ["batch", "length"]
    assert made.error <= 1e-5


def test_attention_whose_output_is_reshaped(tmp_path):
    assert bough.export(Biased(), torch.randn(2, 5, 12), tmp_path / "a.onnx").error <= 1e-5


def test_a_decision_on_constants_is_written_and_one_on_inputs_refused(tmp_path):
    x = torch.ones(2, 4)
    assert bough.export(Decides(constant=True), x, tmp_path / "a.onnx", dynamic_batch=True).error <= 1e-5
    with pytest.raises(ExportError, match="Could not guard on data-dependent expression"):
        bough.export(Decides(constant=False), x, tmp_path / "b.onnx")
    with pytest.raises(ExportError, match="Could not guard on data-dependent expression"):  # checked at one size alone
        bough.export(Decides(constant=True), x, tmp_path / "c.onnx", dynamic_shapes={"x": {0: "rows"}})
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_inputs_of_another_model_are_one_error(tmp_path):
    with pytest.raises(ExportError, match=r"Sequential can not be run on the example inputs \(input \[1, 5\]\)"):
        bough.export(small_net()[0], torch.randn(1, 5), tmp_path / "a.onnx")


def test_a_cache_that_the_model_writes_into(tmp_path):
    memory = Memory(torch.randn(2, 3, 4), length=1)
    before = memory.kept.clone()
    made = bough.export(Remembering(), (torch.randn(2, 4), memory), tmp_path / "a.onnx")
    assert list(made.inputs) == ["x", "memory.kept"]
    assert list(made.outputs) == ["output_0", "output_1.kept"]
    assert torch.equal(memory.kept, before)


def test_a_file_that_differs_is_not_left(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"before")
    with pytest.raises(ExportError, match=r"gives other outputs than Draws: on the example inputs .* nothing is written"):
        bough.export(Draws(), torch.randn(1, 4), tmp_path / "a.onnx", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_bytes() == b"before"


def test_an_operator_without_a_translation_is_named(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    with pytest.raises(ExportError, match="airy_ai"):
        bough.export(Unknown(), torch.randn(1, 4), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_dim_that_the_model_fixes_is_not_said_to_vary(tmp_path):
    class Literal(nn.Module):
        def forward(self, x):
            return x + torch.ones(4, 1)

    with pytest.raises(ExportError):
        bough.export(Literal(), torch.randn(4, 3), tmp_path / "a.onnx", dynamic_batch=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_one_clear_error(tmp_path):
    made = bough.export(*small_net(), tmp_path / "a.onnx")
    whole = made.path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", bytes(200)):
        made.path.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"a\.onnx can not be loaded and run by its runtime") as raised:
            run_artifact(made.path, {"input": torch.randn(1, 4)})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "net.txt"}, r"must end in \.onnx or \.pte or \.tflite"),
        ({"path": "nowhere/net.onnx"}, "there is no folder nowhere"),
        ({"path": "there.onnx"}, r"is there already.*overwrite=True"),
        ({"path": None}, "path must be"),
        ({"model": "net"}, "model must be"),
        ({"tolerance": -1.0}, "neither may be negative"),
        ({"tolerance": "small"}, "tolerance must be"),
        ({"dynamic_shapes": {"y": {0: "batch"}}}, "'y' is no input of the model: there are: input"),
        ({"dynamic_shapes": {"input": {2: "batch"}}}, "write a dim of its 2"),
        ({"more_inputs": [(torch.randn(1, 4), torch.randn(1))]}, "the example inputs hold input"),
        ({"example_inputs": torch.randn(1, 4, device="meta")}, "on the meta device"),
    ],
)
def test_wrong_arguments(change, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("")
    model, x = small_net()
    arguments = {"model": model, "example_inputs": x, "path": "net.onnx", **change}
    with pytest.raises((ExportError, WriteError, bough.errors.ArgumentError), match=said):
        bough.export(**arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]


def test_the_command_line_exports_what_it_pruned(tmp_path):
    small, out = str(tmp_path / "small"), tmp_path / "net.onnx"
    run("prune", "tests.zoo.small:mlp", "--budget", "params=60%", "--out", small)
    words = ["export", "tests.zoo.small:mlp", "--checkpoint", small, "--out", str(out), "--dynamic-shapes", "input=0:rows"]
    done = json.loads(run(*words, "--json"))
    assert done["size"] == out.stat().st_size
    assert done["error"] <= 1e-4
    assert done["inputs"]["input"][0] == "rows"


@pytest.mark.parametrize(
    ("y", "z", "error"),
    [
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([float("nan"), 2.0], [float("nan"), 1.0], 0.5),
        ([float("inf"), 2.0], [1.0, 2.0], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([3.0], [float("nan")], float("inf")),
    ],
)
def test_the_error(y, z, error):
    assert largest_error({"y": torch.tensor(y)}, {"y": torch.tensor(z)}) == error


def test_the_ratio_of_signal_to_noise():
    y = torch.randn(1000)
    assert signal_to_noise({"y": y}, {"y": y + 0.01 * y}) == pytest.approx(40, abs=1e-3)
    assert signal_to_noise({"y": y}, {"y": y}) == float("inf")
