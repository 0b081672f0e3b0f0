"""A pipeline: stages in order, resumed wherever it was killed, with the same files at the end."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough.errors import PipelineError
from bough.pipeline import Distill, Export, Prune, Quantize, Refit, Train

pytest.importorskip("accelerate", reason="training needs accelerate: pip install -e .[train]")
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
LABELS = X[:, :3].argmax(1)
ONCE = bough.Training(epochs=1, lr=1e-2, batch_size=32)
PTQ = {"observer": "minmax", "equalize": False, "correct_bias": False}


def build():
    return nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 8), nn.ReLU(), nn.Linear(8, 3))


def accuracy(model):
    return float((model(X).argmax(1) == LABELS).float().mean())


def pipeline(stages, **options):
    given = {"train": TensorDataset(X, LABELS), "data": list(X.split(32)), "evaluate": accuracy, **options}
    return bough.Pipeline(build, stages, X[:1], **given)


FLOAT = [Train(replace(ONCE, epochs=6)), Prune(bough.Budget(params="60%"), refit=False), Refit(), Distill(ONCE), Train(ONCE)]


def all_stages():
    pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")
    distillation = bough.recovery.Distillation(logits=1.0)
    return [*FLOAT, Quantize(**PTQ, training=ONCE, distillation=distillation), Export("firmware", target="cortex-m")]


class Killed(BaseException):
    pass


def killed_at(call):
    """An `evaluate` that ends the process, as far as a test can, when it is called the n-th time."""
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == call:
            raise Killed
        return accuracy(model)

    return evaluate, calls


def files(folder):
    """What a run leaves, without times: tensors and their metadata (whose order in a file is random), and C."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".c", ".h", ".safetensors")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[name] = file.metadata(), {k: file.get_tensor(k).numpy().tobytes() for k in file.keys()}  # noqa: SIM118
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return pipeline(all_stages()).run(folder), folder


def test_all_stages_in_order_with_one_report(whole):
    done, folder = whole
    names = ["start", "train", "prune", "refit", "distill", "train", "quantize", "export"]
    assert [s.name for s in done.stages] == names
    assert done.plan.cost.params <= 0.6 * done.plan.original.params
    assert done.stages[2].cost["params"] == sum(p.numel() for p in done.model.parameters())
    assert done.stages[1].metric > done.stages[0].metric
    assert done.stages[-2].metric == pytest.approx(accuracy(done.quantized))
    assert done.stages[-2].cost["size"] < done.stages[-3].cost["size"]
    report = json.loads((folder / "report.json").read_text())
    assert report["stages"] == done.to_dict()["stages"]
    page = (folder / "report.html").read_text()
    assert all(f"<td>{name}" in page for name in names)
    assert (folder / "firmware" / "model.c").is_file()
    assert [line.split()[0] for line in str(done).splitlines()[1:-1]] == names


@pytest.mark.parametrize("call", [2, 8, 13])  # in the first training, in the second distillation, in INT8
def test_a_run_killed_anywhere_ends_with_the_same_files(whole, call, tmp_path):
    evaluate, calls = killed_at(call)
    with pytest.raises(Killed):
        pipeline(all_stages(), evaluate=evaluate).run(tmp_path)
    assert len(calls) == call
    done = pipeline(all_stages()).run(tmp_path)
    assert [s.name for s in done.stages] == [s.name for s in whole[0].stages]
    assert files(tmp_path) == files(whole[1])
    for name, value in whole[0].quantized.state_dict().items():
        assert torch.equal(value, done.quantized.state_dict()[name]), name


def test_a_finished_run_is_read_and_can_be_extended(tmp_path):
    first = pipeline(FLOAT[:2]).run(tmp_path)
    evaluate, calls = killed_at(1)
    again = pipeline(FLOAT[:2], evaluate=evaluate).run(tmp_path)
    assert not calls
    assert again.resumed == 2
    assert again.to_dict()["stages"] == first.to_dict()["stages"]
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert pipeline(FLOAT[:3]).run(tmp_path).resumed == 2
    (tmp_path / "2-prune" / "plan.json").unlink()
    assert pipeline(FLOAT[:3]).run(tmp_path).resumed == 1


def test_another_run_is_not_taken_up(tmp_path):
    pipeline(FLOAT[:2]).run(tmp_path)
    other = [FLOAT[0], Prune(bough.Budget(params="50%"), refit=False)]
    with pytest.raises(PipelineError, match=r"stage 2 \(Prune\) has budget .*50%"):
        pipeline(other).run(tmp_path)
    with pytest.raises(PipelineError, match="another seed"):
        pipeline(FLOAT[:2], seed=1).run(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(PipelineError, match=r"report\.json is damaged"):
        pipeline(FLOAT[:2]).run(tmp_path)


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, "does nothing"),
        ([FLOAT[1], FLOAT[1]], {}, "two stages Prune"),
        ([Refit()], {}, "Refit before Prune"),
        ([Distill(ONCE)], {}, "has no teacher"),
        ([Train(ONCE)], {"train": None}, "Train needs train"),
        ([FLOAT[1], Refit()], {"data": None}, "Refit needs data"),
        ([Export("a.onnx"), Export("a.onnx")], {}, "two stages Export write 'a.onnx'"),
        ([Export("firmware", target="cortex-m")], {"data": None}, "without Quantize needs data"),
    ],
)
def test_stages_that_do_not_fit(stages, options, message):
    with pytest.raises(PipelineError, match=message):
        pipeline(stages, **options)


def test_stages_that_do_not_fit_quantization():
    pytest.importorskip("torchao")
    with pytest.raises(PipelineError, match="Train after Quantize"):
        pipeline([Quantize(), Train(ONCE)])
    with pytest.raises(PipelineError, match="give training"):
        Quantize(distillation=bough.recovery.Distillation())
    with pytest.raises(PipelineError, match="a name in the run's folder"):
        Export("a/b.onnx")


def test_a_larger_teacher_before_a_cut(tmp_path):
    def teacher():
        return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    done = pipeline([Distill(ONCE, teacher=teacher)]).run(tmp_path)
    assert [s.name for s in done.stages] == ["start", "distill"]


def test_training_in_int8_learns_from_the_model_that_is_quantized(monkeypatch, tmp_path):
    pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")
    teachers = []

    def recorded(student, teacher, *args, **options):
        teachers.append([p.detach().clone() for p in teacher.parameters()])
        return bough.distill(student, teacher, *args, **options)

    monkeypatch.setattr("bough.pipeline.deployment_stages.distill", recorded)
    cut = [Train(ONCE), Prune(bough.Budget(params="60%"), refit=False)]
    quantized = Quantize(**PTQ, training=ONCE, distillation=bough.recovery.Distillation(logits=1.0))
    done = pipeline([*cut, quantized]).run(tmp_path)
    assert all(torch.equal(t, p) for t, p in zip(teachers[0], done.model.parameters(), strict=True))
