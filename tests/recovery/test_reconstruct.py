"""Blocks of a cut model are trained one by one: what they are held against, what stays, and that no block gets worse."""

import pytest
import torch
from torch import nn

import bough
from bough.errors import PlanError
from bough.exporting import load_plan
from bough.recovery import reconstruct
from tests.test_cli import run
from tests.zoo import randomize
from tests.zoo.transformers_text import VOCABULARY, built

HALF = bough.Budget(params="60%")


class Block(nn.Module):
    """A residual block; `stride` makes it one that can not be left out."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.short(x) + self.norm(self.two(torch.relu(self.one(x)))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.stage = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def build():
    torch.manual_seed(0)
    return randomize(Net()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def images():
    return list(torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double().split(6))


def cut_net(ignore=()):
    model, x = build()
    graph = bough.trace(model, x, ignore=ignore)
    plan = bough.plan(graph, bough.score(graph, "l2"), HALF)
    return model, bough.cut(model, plan), plan


def entering(model, name, batch):
    """What enters a block, and what leaves it."""
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, args, output: seen.append((args, output)))
    with torch.no_grad():
        model(batch) if isinstance(batch, torch.Tensor) else model(**batch, use_cache=False)
    hook.remove()
    ((args, output),) = seen
    return args[0], output


@pytest.mark.parametrize("ignore", [(), ("stem", "stage.1.two")], ids=["all groups", "inner channels"])
def test_errors_are_those_on_the_batches_that_are_held_out(ignore):
    model, small, plan = cut_net(ignore)
    data = images()
    done = reconstruct(model, small, plan, data, epochs=2, rate=0.01)
    kept = plan.kept.get("stem.weight", {}).get(0, range(8))
    for net, number in ((small, "before"), (done.model, "after")):
        (_, y), (_, z) = entering(model, "stage.0", data[-1]), entering(net, "stage.0", data[-1])
        target = y[:, list(kept)]
        error = float((z - target).square().sum() / target.square().sum())
        assert getattr(done.blocks[0], number) == pytest.approx(error, rel=1e-9)
    assert [b.name for b in done.blocks] == ["stage.0", "stage.1", "stage.2"]
    assert all(b.after <= b.before for b in done.blocks)
    assert sum(b.after for b in done.blocks) < 0.9 * sum(b.before for b in done.blocks)


def test_nothing_else_changes():
    model, small, plan = cut_net()
    before = {n: t.clone() for m in (model, small) for n, t in m.state_dict().items()}
    rng = torch.get_rng_state()
    done = reconstruct(model, small, plan, images(), epochs=1)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())
    trained = done.model.state_dict()
    outside = [n for n, _ in done.model.named_parameters() if not n.startswith("stage.")]
    buffers = [n for n, _ in done.model.named_buffers()]
    assert all(torch.equal(trained[n], before[n]) for n in [*outside, *buffers])
    assert all(p.requires_grad and p.grad is None for p in done.model.parameters())
    again = reconstruct(model, small, plan, images(), epochs=1).model.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in trained.items())


@pytest.mark.parametrize("drop", [(), ("model.layers.1",)], ids=["widths", "a layer"])
def test_language_model_with_a_cache_and_relative_errors_of_rows(drop):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = built("llama", "CausalLM", num_hidden_layers=3, hidden_size=16, intermediate_size=24, num_attention_heads=2,
                  num_key_value_heads=2, vocab_size=VOCABULARY, pad_token_id=0).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    data = [{"input_ids": torch.randint(3, VOCABULARY, (8, 8))} for _ in range(16)]
    graph = bough.trace(model, data[0], ignore=["model.embed_tokens"])
    plan = bough.plan(graph, bough.score(graph, "l2"), keep={"*mlp.gate_proj": 12}, drop=drop)
    small = bough.cut(model, plan)
    done = reconstruct(model, small, plan, data, epochs=4)
    assert [b.name for b in done.blocks] == [f"model.layers.{i}" for i in range(3 - len(drop))]
    pairs = [[entering(m, "model.layers.0", batch)[1] for m in (model, small)] for batch in (data[7], data[15])]
    y, z = (torch.stack(part) for part in zip(*pairs, strict=True))
    squares = y.square().sum(-1)
    weights = 1 / squares.clamp_min(1e-3 * squares.median())  # of no effect on either batch
    error = ((z - y).square().sum(-1) * weights).sum() / (squares * weights).sum()
    assert done.blocks[0].before == pytest.approx(float(error), rel=1e-4)
    assert done.blocks[0].after < done.blocks[0].before


def test_blocks_that_run_twice_or_are_none_are_said():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.stage = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.stage[0](self.stage[1](self.stage[1](self.stem(x))))
            return self.head(x.mean((2, 3)))

    model, x = randomize(Twice()).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), HALF)
    done = reconstruct(model, bough.cut(model, plan), plan, [x, x], epochs=1)
    assert [b.name for b in done.blocks] == ["stage.0"]
    assert done.skipped == {"stage.1": "a run calls it more or less than once"}
    assert "not reconstructed: stage.1" in str(done)
    plain, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(8, 4)
    result = bough.prune(plain, x, HALF)
    with pytest.raises(PlanError, match="has no blocks that can be reconstructed"):
        reconstruct(plain, result.model, result.plan, [x])


def test_refused():
    model, small, plan = cut_net()
    with pytest.raises(PlanError, match="epochs must be at least 1"):
        reconstruct(model, small, plan, images(), epochs=0)
    with pytest.raises(PlanError, match="more than 256 batches"):
        reconstruct(model, small, plan, images()[:1] * 257)
    model, data = build()[0].bfloat16(), [x.bfloat16() for x in images()]
    graph = bough.trace(model, data[0])
    plan = bough.plan(graph, bough.score(graph, "l2"), HALF)
    with pytest.raises(PlanError, match="half precision"):
        reconstruct(model, bough.cut(model, plan), plan, data)


def test_command_line(tmp_path):
    here, small, out = "tests.recovery.test_reconstruct", tmp_path / "small", tmp_path / "out"
    run(
        "prune",
        f"{here}:build",
        "--budget",
        "params=60%",
        "--data",
        f"{here}:images",
        "--importance",
        "l2",
        "--out",
        str(small),
    )
    said = run("refit", f"{here}:build", f"{here}:images", "--checkpoint", str(small), "--out", str(out),
               "--reconstruct", "2", "--reconstruct-rate", "0.01")  # fmt: skip
    assert "stage.2" in said
    loaded = bough.load(out, lambda: build()[0])
    start = bough.load(small, lambda: build()[0])
    refitted = bough.refit(build()[0], start, load_plan(small), images()).model
    expected = reconstruct(build()[0], refitted, load_plan(small), images(), epochs=2, rate=0.01).model
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in expected.state_dict().items())
