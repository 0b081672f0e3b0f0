"""Quantized programs on the disk, and the command line from pruning to an INT8 file."""

import json

import pytest
import torch

import bough
from bough.errors import CheckpointError
from bough.quantization import load_quantized, save_quantized
from tests.exporting.models import convolutional
from tests.quantization.test_quantize import batches, trained
from tests.test_cli import run

pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")


def test_a_loaded_program_gives_the_same_bits(tmp_path):
    options = {"observer": "minmax", "equalize": False, "correct_bias": False}
    done = bough.quantize(trained(convolutional()), torch.zeros(1, 3, 8, 8), batches(2), **options)
    save_quantized(done, torch.zeros(1, 3, 8, 8), tmp_path / "q")
    x = batches(1, size=5)[0]
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path / "q")(x), done.model(x))
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_quantized(done, torch.zeros(1, 3, 8, 8), tmp_path / "q")
    file = tmp_path / "q" / "quantized.pt2"
    file.write_bytes(file.read_bytes()[:-7] + b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_quantized(tmp_path / "q")
    with pytest.raises(CheckpointError, match="holds no whole quantized program"):
        load_quantized(tmp_path / "nowhere")


def test_from_pruning_to_an_int8_file(tmp_path):
    pytest.importorskip("onnxscript", reason="export to ONNX needs onnxscript: pip install -e .[onnx]")
    small, q, out = str(tmp_path / "small"), str(tmp_path / "q"), tmp_path / "a.onnx"
    model = "tests.zoo.tasks:same_mlp"
    run("prune", model, "--budget", "params=60%", "--out", small)
    words = ["quantize", model, "tests.zoo.tasks:unlabelled", "--checkpoint", small, "--out", q, "--mixed", "10 dB", "--json"]
    found = json.loads(run(*words))
    assert found["signal_to_noise"] > 10
    assert all(layer["precision"] == "int8" for layer in found["layers"])
    made = json.loads(run("export", model, "--quantized", q, "--out", str(out), "--dynamic-batch", "--json"))
    assert made["precision"] == "int8"
    assert made["inputs"]["input"][0] == "batch"
    assert made["size"] == out.stat().st_size
    with pytest.raises(
        CheckpointError, match="has a quantized program, no checkpoint: load_quantized or `--quantized` reads it"
    ):
        run("export", model, "--checkpoint", q, "--out", str(tmp_path / "b.onnx"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        run("export", model, "--checkpoint", small, "--out", str(tmp_path / "nowhere" / "b.onnx"))
