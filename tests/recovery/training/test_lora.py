"""Low-rank adapters: they alone are trained, and merged; a resumed run is the same run."""

import copy
import json
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough.errors import ArgumentError, TrainingError
from bough.recovery import Distillation, LoRA, Training, distill, finetune
from tests.zoo.shim import declare_torchvision_ops

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is an extra: pip install 'bough[lora]'")
declare_torchvision_ops()  # transformers, which peft imports, needs them where torchvision is of another build


class Tied(nn.Module):
    """A net whose last layer has the weights of its first one."""

    def __init__(self):
        super().__init__()
        self.words, self.inner, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.last = nn.Linear(8, 11, bias=False)
        self.last.weight = self.words.weight

    def forward(self, x):
        return self.last(self.norm(self.inner(self.words(x)))).flatten(0, -2)


def net():
    torch.manual_seed(0)
    inner = nn.Linear(12, 10, bias=False)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.1), inner, nn.ReLU(), nn.Linear(10, 3))


def data():
    torch.manual_seed(1)
    x = torch.randn(48, 6)
    return TensorDataset(x, (x.sum(1) > 0).long())


def test_products_of_low_rank_are_added_to_the_weights_and_nothing_else_changes():
    model, before = net(), net().state_dict()
    model[5].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    attributes = set(vars(model))
    train, random = data(), torch.get_rng_state()
    finetune(model, train, Training(epochs=3, lr=1e-2), lora=LoRA(rank=2, targets=["0", "3"]))
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [type(m) for m in model] == [type(m) for m in net()]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert set(vars(model)) == attributes
    for name in before:
        if name in ("0.weight", "3.weight"):
            assert torch.linalg.matrix_rank(after[name] - before[name], tol=1e-5) == 2
        else:
            assert torch.equal(after[name], before[name])


def test_merged_model_computes_what_the_adapted_one_did():
    seen = []
    x = torch.randn(5, 6)
    model = net()
    finetune(model, data(), Training(epochs=2, lr=1e-2), lora=LoRA(rank=3), evaluate=lambda m: seen.append(m(x)) or len(seen))
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(model.eval()(x), seen[1])


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    class Killed(Exception):
        pass

    def killing(line):
        if line["step"] == 3:
            raise Killed

    straight, resumed = net(), net()
    start = copy.deepcopy(resumed.state_dict())
    options = {"epochs": 3, "lr": 1e-2, "batch_size": 16, "save_every": 1}
    lora = LoRA(rank=2, dropout=0.2)
    finetune(straight, data(), Training(**options), lora=lora)
    with pytest.raises(Killed):
        finetune(resumed, data(), Training(**options, folder=tmp_path), lora=lora, callback=killing)
    assert all(torch.equal(v, start[k]) for k, v in resumed.state_dict().items())  # adapters are removed, not merged
    done = finetune(resumed, data(), Training(**options, folder=tmp_path), lora=lora)
    assert done.resumed == 3
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in resumed.state_dict().items())
    with pytest.raises(TrainingError, match="another loss"):
        finetune(net(), data(), Training(**options, folder=tmp_path), lora=LoRA(rank=2, dropout=0.2, alpha=1.0))


def test_shared_weights_are_left_alone():
    torch.manual_seed(0)
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    words = torch.randint(11, (16, 4))
    finetune(
        model, [(words, words)], Training(epochs=2, lr=1e-2), lora=LoRA(rank=1),
        loss=lambda output, batch: nn.functional.cross_entropy(output, batch[1].flatten()),
    )  # fmt: skip
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"inner.weight"}
    assert model.last.weight is model.words.weight


def test_distillation_with_adapters():
    teacher = net()
    result = bough.prune(teacher, torch.randn(2, 6), bough.Budget(params="60%"), importance="l2")
    small, x = result.model, data()
    apart = (small.eval()(x.tensors[0]) - teacher.eval()(x.tensors[0])).square().mean()
    distill(small, teacher, x, Training(epochs=10, lr=1e-2), distillation=Distillation(logits=1.0), lora=LoRA(rank=4))
    assert (small.eval()(x.tensors[0]) - teacher(x.tensors[0])).square().mean() < apart
    assert all(type(m).__module__.startswith("torch.") for m in small.modules())


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"targets": ["9"]}, {}, r"targets=\['9'\]\): Sequential has no such module"),
        ({"targets": ["1"]}, {}, "peft can not add adapters"),
        ({}, {"optimizer": lambda m: torch.optim.SGD(m.parameters())}, "lora and optimizer exclude each other"),
    ],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(options, more, message):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match=message):
        finetune(model, data(), Training(epochs=1), lora=LoRA(**options), **{k: v(model) for k, v in more.items()})
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_options_are_checked():
    for options in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(TrainingError, match="rank at least 1"):
            LoRA(**options)
    with pytest.raises(ArgumentError):
        LoRA(rank="8")


NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(2, 6)

def task():
    x = torch.randn(32, 6)
    return torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
"""


def test_command_line_trains_adapters(tmp_path, monkeypatch, capsys):
    from bough.cli import main

    (tmp_path / "nets_for_lora.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["bough", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr()

    assert run("prune", "nets_for_lora:net", "--budget", "params=60%", "--out", "small")[0] == 0
    words = ("finetune", "nets_for_lora:net", "nets_for_lora:task", "--checkpoint", "small", "--out", "tuned", "--epochs", "2")
    code, written = run(*words, "--lora", "--lora-rank", "2", "--lora-targets", "0", "--json")
    assert code == 0
    assert json.loads(written.out)["steps"] == 2
    code, written = run(*words, "--lora-rank", "2")
    assert code
    assert "--lora-rank is for --lora" in written.err
