"""`bough pipeline`, as a user runs it."""

import json

import pytest

from bough.errors import BoughError
from tests.test_cli import run

HEAD = """
model = "tests.zoo.tasks:same_mlp"
task = "tests.zoo.tasks:five_inputs"
data = "tests.zoo.tasks:unlabelled"
"""
STAGES = """
[[stage]]
kind = "train"
epochs = 2
lr = 0.02

[[stage]]
kind = "prune"
budget = { params = "60%" }
importance = "obs(relative=True)"
allocation = "error"

[[stage]]
kind = "distill"
epochs = 1
temperature = 2.0
"""
INT8 = """
[[stage]]
kind = "quantize"
observer = "minmax"
equalize = false
correct_bias = false
epochs = 1
logits = 1.0

[[stage]]
kind = "export"
file = "firmware"
target = "cortex-m"
"""


def written(folder, *parts):
    (folder / "deploy.toml").write_text("".join(parts))
    return str(folder / "deploy.toml")


def test_from_training_to_c_and_again(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("torchao")
    file, out = written(tmp_path, HEAD, STAGES, INT8), tmp_path / "run"
    done = json.loads(run("pipeline", file, "--out", str(out), "--json"))
    assert [s["name"] for s in done["stages"]] == ["start", "train", "prune", "distill", "quantize", "export"]
    assert done["stages"][2]["cost"]["params"] <= 0.6 * done["stages"][1]["cost"]["params"]
    assert done["stages"][4]["details"]["quantized"]["observer"] == "minmax"
    assert (out / "firmware" / "model.c").is_file()
    assert (out / "report.html").is_file()
    again = json.loads(run("pipeline", file, "--out", str(out), "--json"))
    assert again["resumed"] == 5
    assert again["stages"] == done["stages"]
    assert "quantize" in run("pipeline", file, "--out", str(out))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model = ", "can not be read"),
        (HEAD, "needs model"),
        (HEAD + "models = 1\n[[stage]]\nkind = 'train'", "models is unknown: did you mean 'model'"),
        (HEAD + "[[stage]]\nkind = 'prun'", "kind = 'prun' is unknown: did you mean 'prune'"),
        (HEAD + "[[stage]]\nkind = 'train'\nepoch = 3", "epoch is unknown: did you mean 'epochs'"),
        (HEAD + "[[stage]]\nkind = 'train'\nlr = -1.0", "lr above 0"),
        (HEAD + "[[stage]]\nkind = 'prune'", "needs a budget"),
        (HEAD + "[[stage]]\nkind = 'prune'\nbudget = { mac = '50%' }", "mac is unknown: did you mean 'macs'"),
        (HEAD + "[[stage]]\nkind = 'export'", "file"),
        (HEAD + "[[stage]]\nkind = 'refit'", "Refit before Prune"),
    ],
)
def test_files_that_do_not_fit(content, message, tmp_path):
    with pytest.raises(BoughError, match=message):
        run("pipeline", written(tmp_path, content), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
