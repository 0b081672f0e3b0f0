"""Contrast and predictability: equal numbers of non-zeros, honest columns, resuming, fits of known lines."""

import json

import pytest
import torch
from torch import nn

import bough
from bough.contrasting.linear_fit import linear_fit
from bough.contrasting.variants import nonzero_macs
from tests.sparsity.nets import batches, mlp
from tests.test_cli import run

CALLS = []


def build():
    return mlp(), batches()[0][:2]


def build_wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)).eval(), torch.randn(2, 8)


def data():
    return batches()


def error(model):
    CALLS.append(model)
    x = torch.cat(batches())
    return float((model(x) - mlp()(x)).square().mean().detach())


def recover(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for x in batches():
        optimizer.zero_grad()
        (model(x) - mlp()(x).detach()).square().mean().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def found():
    return bough.contrast(*build(), error, keeps=[0.5, 0.3], data=data(), recover=recover, round_to=4, lower_is_better=True,
                          tolerance=1e9, repeats=1)  # fmt: skip


def test_non_zeros_are_equal(found):
    total = sum(p.numel() for p in mlp().parameters())
    for row in found.rows[1:]:
        assert row.error is None, row
        if row.keep is None:
            continue
        if row.variant == "structured":
            assert row.nonzeros == row.params <= row.keep * total
        elif row.variant in ("magnitude", "wanda", "sparsegpt"):
            assert row.params == total
            assert abs(row.nonzeros - row.keep * total) <= 1


def test_columns_are_consistent(found):
    dense = found.dense
    assert dense.nonzero_macs == dense.macs == 2 * (8 * 16 + 16 * 16 + 16 * 4)
    assert dense.speedup == {"eager": 1.0}
    for row in found.rows[1:]:
        structured = row.variant.startswith("structured")
        assert (row.macs < dense.macs) == structured
        assert (row.nonzero_macs < row.macs) == (row.variant != "structured")
        assert row.files["sparse"] <= row.files["dense"] + 200
        assert ("csr" in row.speedup) == (row.variant != "structured")
        assert row.before is not None
        assert row.after is not None


def test_at_equal_accuracy_the_smallest_row_is_taken(found):
    best = found.at_equal_accuracy
    assert best["structured"].keep == 0.3
    assert bough.Contrast(found.rows, "", -1.0, True, {}).at_equal_accuracy["structured"] is None


def test_the_table_names_what_is_absent(found):
    assert "NVIDIA GPUs" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["variant"] == "dense"


def test_a_killed_contrast_goes_on(tmp_path):
    options = {"lower_is_better": True, "repeats": 1, "folder": tmp_path}
    bough.contrast(*build(), error, **options)
    CALLS.clear()
    again = bough.contrast(*build(), error, keeps=[0.5, 0.4], **options)
    assert len(CALLS) == 3  # structured, magnitude, and the pattern on a cut model, for the new share
    assert [r.keep for r in again.rows] == [None, None, 0.5, 0.5, 0.4, 0.4, 0.4]
    with pytest.raises(bough.errors.ComparisonError, match="another run"):
        bough.contrast(*build(), error, round_to=2, **options)


def test_non_zero_macs_are_those_of_the_weights():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 9, 2)).eval()
    net[0].weight.data[:, :, 0] = 0
    macs, computed, _ = nonzero_macs(net, torch.randn(1, 4, 3, 3))
    assert macs == 9 * 9 * 4 * 8 + 8 * 9 * 2
    assert computed == 6 * 9 * 4 * 8 + 8 * 9 * 2


def test_the_line_is_found():
    fit = linear_fit([0.2, 0.5, 1.0, 0.7], [0.3 + 0.7 * x for x in (0.2, 0.5, 1.0, 0.7)])
    assert (fit.intercept, fit.slope, fit.r2) == pytest.approx((0.3, 0.7, 1.0))
    off = linear_fit([0.0, 1.0, 2.0], [0.0, 2.0, 1.0])
    assert off.r2 == pytest.approx(0.25)  # by hand: slope 0.5, residuals -0.5, 1, -0.5, deviations -1, 1, 0
    with pytest.raises(bough.errors.ComparisonError, match="three points"):
        linear_fit([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])


def test_costs_of_the_points_are_those_of_the_cuts():
    found = bough.predictability(*build_wide(), points=4, repeats=1, round_to=8)
    assert [p.kind for p in found.points] == ["dense", "uniform", "mixed", "uniform", "mixed"]
    for p in found.points:  # one group: MACs are in proportion to its units
        assert p.macs == pytest.approx(p.channels)
        assert p.channels * 64 % 8 == 0
        assert p.latency > 0
    assert found.fits["macs"].r2 == pytest.approx(found.fits["channels"].r2)


def test_on_the_command_line(tmp_path):
    words = ["--evaluate", "tests.contrasting.test_contrast:error", "--data", "tests.contrasting.test_contrast:data"]
    words += ["--lower-is-better", "--repeats", "1", "--methods", "magnitude", "--out", str(tmp_path / "out")]
    printed = json.loads(run("contrast", "tests.contrasting.test_contrast:build", *words, "--json"))
    assert [r["variant"] for r in printed["rows"]] == ["dense", "2:4 magnitude", "structured", "magnitude"]
    assert (tmp_path / "out" / "contrast.png").exists()
    assert "speed-up over the dense model" in run("contrast", "tests.contrasting.test_contrast:build", *words)
    picture = tmp_path / "fit.png"
    words = ["--points", "3", "--repeats", "1", "--out", str(picture)]
    assert "R2" in run("predictability", "tests.contrasting.test_contrast:build_wide", *words)
    assert picture.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keeps": [1.5]}, "above 0 and below 1"),
        ({"methods": ["snip"]}, "none of 'magnitude'"),
        ({"methods": ["wanda"]}, "needs data"),
        ({"pattern": "4:2"}, "0 < N < M"),
        ({"repeats": 0}, "at least 1"),
        ({"clock": "sun"}, "'wall' or 'cpu'"),
        ({"kernels": ["semi_structured"]}, "run on NVIDIA GPUs only, and the model is on cpu"),
        ({"kernels": ["semi_structured"], "pattern": "4:8"}, "is for pattern='2:4'"),
        ({"kernels": ["magic"]}, "layout='magic' is unknown"),
        ({"seeds": [0, 1]}, "give train=loader as well"),
        ({"seeds": []}, "at least one seed"),
        ({"recover": recover, "train": []}, "not both"),
        ({"train": [], "training": bough.recovery.Training(folder="here")}, "training.folder is not for contrast"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(bough.BoughError, match=said):
        bough.contrast(*build(), error, **options)


def test_metrics_that_are_no_numbers():
    with pytest.raises(bough.errors.ComparisonError, match="must return a number"):
        bough.contrast(*build(), lambda model: "good")


def labels():
    x = torch.cat(batches())
    return torch.utils.data.TensorDataset(x, x[:, :4].argmax(1))


def task():
    return labels(), None, None, accuracy


def accuracy(model):
    x, y = labels().tensors
    return float((model(x).argmax(1) == y).float().mean())


def test_training_is_equal_and_keeps_zeros_and_its_spread_is_that_of_the_seeds():
    pytest.importorskip("accelerate")
    training = bough.recovery.Training(epochs=2, lr=0.02)
    options = {"keeps": [0.5], "methods": ["magnitude"], "repeats": 1, "train": labels(), "training": training}
    found = bough.contrast(*build(), accuracy, seeds=(3, 4), **options)
    plain = bough.contrast(*build(), accuracy, keeps=[0.5], methods=["magnitude"], repeats=1)
    assert found.dense.trained == []
    for row, untrained in zip(found.rows[1:], plain.rows[1:], strict=True):
        assert row.error is None
        assert row.nonzeros <= untrained.nonzeros
        assert (row.params, row.before) == (untrained.params, untrained.before)
        assert len(row.trained) == 2
        assert row.after == pytest.approx(sum(row.trained) / 2)
        assert row.spread == pytest.approx(abs(row.trained[0] - row.trained[1]) / 2**0.5)
    alone = bough.contrast(*build(), accuracy, seeds=(4,), **options)
    assert [r.trained[0] for r in alone.rows[1:]] == [r.trained[1] for r in found.rows[1:]]  # each from the same start
    assert f"± {found.rows[1].spread:.2g}" in str(found)
    best = found.at_equal_parameters[0.5]
    assert [r.metric for r in best] == sorted((r.metric for r in best), reverse=True)
    by_hand = bough.prune(*build(), bough.Budget(params=int(0.5 * found.dense.params)), round_to=8).model
    bough.finetune(by_hand, labels(), bough.recovery.Training(epochs=2, lr=0.02, seed=4))
    assert next(r for r in alone.rows if r.variant == "structured").trained == [accuracy(by_hand)]


def test_training_on_the_command_line():
    pytest.importorskip("accelerate")
    here = "tests.contrasting.test_contrast"
    words = [
        "contrast",
        f"{here}:build",
        "--evaluate",
        f"{here}:accuracy",
        "--methods",
        "magnitude",
        "--repeats",
        "1",
        "--json",
    ]
    trained = ["--train", f"{here}:task", "--epochs", "1", "--lr", "0.01", "--batch-size", "16", "--seed", "1", "--seed", "2"]
    rows = json.loads(run(*words, *trained, "--kernels", "csr"))["rows"]
    assert [len(r["trained"]) for r in rows] == [0, 2, 2, 2]
    assert {n for r in rows for n in r["speedup"]} == {"eager", "csr"}
    with pytest.raises(bough.errors.ComparisonError, match="give it as well"):
        run(*words, "--epochs", "2")
