"""What no call reached: siblings of what was reached are cut with it, what else could be half cut stays, and all is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bough

torch.manual_seed(0)


class MixtureOfExperts(nn.Module):
    """Routes each row to some experts; the rest of a small batch's experts get no row."""

    def __init__(self, width=16, experts=8, chosen=2):
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, width), nn.Linear(width, experts), nn.Linear(width, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(experts)
        )
        self.chosen = chosen

    def forward(self, x):
        x = self.stem(x)
        weights, index = self.gate(x).softmax(-1).topk(self.chosen, -1)
        out = x
        for e in index.unique().tolist():
            row, slot = torch.where(index == e)
            out = out.index_add(0, row, self.experts[e](x[row]) * weights[row, slot, None])
        return self.head(out)


class Choice(nn.Module):
    """One of several parts, by a forward argument, between a body and (where the part is no head) a last layer."""

    def __init__(self, parts, last=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.parts, self.last = parts, last

    def forward(self, x, part):
        x = self.parts[part](self.body(x))
        return x if self.last is None else self.last(x)


def mlp(n, hidden=16):
    return nn.Sequential(nn.Linear(24, hidden), nn.ReLU(), nn.Linear(hidden, n))


@pytest.mark.parametrize(
    ("parts", "last", "others"),
    [
        (nn.ModuleDict({"a": nn.Linear(24, 5), "b": nn.Linear(24, 7)}), None, ["b"]),
        (nn.ModuleDict({"a": mlp(5), "b": mlp(7, 20), "c": mlp(5)}), None, ["b", "c"]),
        (nn.ModuleList([mlp(24), nn.Linear(24, 24), nn.Identity()]), nn.Linear(24, 3), [1, 2]),
        (nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)), nn.Linear(24, 3), [1]),
    ],
)
def test_entries_beside_a_called_one_follow_the_body(parts, last, others):
    model, x = Choice(parts, last).eval(), torch.randn(2, 8)
    result = bough.prune(model, (x, "a" if "a" in parts._modules else 0), bough.Budget(macs="50%"))
    named = {f"parts.{o}" for o in others if not isinstance(parts[o], nn.Identity)}
    assert set(result.plan.unreached) == named
    masked = bough.mask(model, result.plan)
    for other in others:
        assert torch.allclose(result.model(x, other), masked(x, other), atol=1e-5)
    text = str(result)
    assert all(name in text for name in named)
    assert "bough.Call" in text
    assert set(result.to_dict()["plan"]["unreached"]) == named
    assert bough.Plan.from_json(result.plan.to_json()) == result.plan


def test_experts_that_got_no_token_are_cut_with_the_stream():
    model, x = MixtureOfExperts().eval(), torch.randn(1, 6)
    result = bough.prune(model, x, bough.Budget(params="60%"))
    assert len(result.plan.unreached) == 6
    many, masked = torch.randn(300, 6), bough.mask(model, result.plan)
    assert torch.allclose(result.model(many), masked(many), atol=1e-5)


def test_heads_whose_names_differ_by_a_number_are_siblings():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head1, self.head2 = nn.Linear(8, 24), mlp(3), mlp(4, 10)

        def forward(self, x, number=1):
            return getattr(self, f"head{number}")(self.body(x).relu())

    model, x = Heads().eval(), torch.randn(2, 8)
    result = bough.prune(model, x, bough.Budget(params="50%"))
    assert list(result.plan.unreached) == ["head2"]
    assert torch.allclose(result.model(x, 2), bough.mask(model, result.plan)(x, 2), atol=1e-5)


def test_a_skipped_link_of_a_chain_fits_anywhere_in_it():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc = nn.Linear(6, 16), nn.Linear(16, 4)
            self.links, self.active = nn.ModuleList(nn.Linear(16, 16) for _ in range(4)), (0, 3)

        def forward(self, x):
            x = self.stem(x)
            for i in self.active:
                x = self.links[i](x).relu()
            return self.fc(x)

    small = bough.prune(Chain().eval(), torch.randn(2, 6), bough.Budget(params="50%")).model
    for small.active in ((0, 1, 2, 3), (1,), (2, 1), ()):
        assert small(torch.randn(2, 6)).shape == (2, 4)


def test_siblings_that_are_read_without_being_called_share_their_types():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(8, 24), nn.Linear(12, 3)
            self.experts = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
            self.maps = nn.ParameterList(torch.randn(12, 24) for _ in range(3))
            self.scale1, self.scale2 = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(24))

        def forward(self, x, i=0):
            x = self.body(x).relu() * (self.scale2 if i else self.scale1)
            return self.last(F.linear(F.linear(x, self.experts[i].weight, self.experts[i].bias), self.maps[i]))

    model, x = Functional().eval(), torch.randn(2, 8)
    result = bough.prune(model, x, bough.Budget(params="50%"))
    assert torch.allclose(result.model(x, 2), bough.mask(model, result.plan)(x, 2), atol=1e-5)


def test_what_only_one_type_fits_follows_it_and_what_several_fit_freezes_them():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mask_token = nn.Linear(6, 24), nn.Parameter(torch.randn(1, 1, 24))
            self.up, self.down, self.out = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 3)
            self.auxiliary = nn.Sequential(nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 3))

        def forward(self, x, mask=None, auxiliary=False):
            x = self.stem(x)
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_token, x)
            inner = self.up(x).relu()
            return self.auxiliary(inner) if auxiliary else self.out(x + self.down(inner))

    model, x, chosen = Masked().eval(), torch.randn(2, 5, 6), torch.rand(2, 5) > 0.5
    result = bough.prune(model, x, bough.Budget(params="70%"))
    assert result.model.mask_token.shape[-1] == result.model.stem.out_features < 24
    assert result.model.up.out_features == 48
    assert torch.allclose(result.model(x, chosen), bough.mask(model, result.plan)(x, chosen), atol=1e-5)
    assert result.model(x, auxiliary=True).shape == (2, 5, 3)
    assert set(result.plan.unreached) == {"mask_token", "auxiliary"}
    assert any("auxiliary" in f.reason and "give a call" in f.reason for f in bough.trace(model, x).frozen)


def test_what_other_modules_compute_inside_is_not_seen_by_the_code_around_them():
    """A part that no call reaches can read what modules return, but not the hidden units of a module beside it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x):
            hidden = self.up(x).relu()
            return {"out": x + self.down(hidden)}

    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.out = nn.Linear(6, 24), Block(), nn.Linear(24, 3)
            self.score = nn.Linear(24, 5)

        def forward(self, x, scored=False):
            x = self.block(self.stem(x))["out"]
            return self.score(x) if scored else self.out(x)

    model, x = Scored().eval(), torch.randn(2, 6)
    graph = bough.trace(model, x)
    assert [g.name for g in graph.groups] == ["block.up"]
    assert any(f.name == "stem" and "score, which no call reaches" in f.reason for f in graph.frozen)
    result = bough.prune(model, x, bough.Budget(macs="60%"))
    assert result.model.block.up.out_features < 24
    assert torch.allclose(result.model(x, scored=True), bough.mask(model, result.plan)(x, scored=True), atol=1e-6)


def test_adapters_that_are_turned_off_follow_the_layer_around_them():
    class Adapted(nn.Module):
        def __init__(self, given, made):
            super().__init__()
            self.base, self.down, self.up = nn.Linear(given, made), nn.Linear(given, 3), nn.Linear(3, made)
            self.on = False

        def forward(self, x):
            return self.base(x) + self.up(self.down(x)) if self.on else self.base(x)

    model, x = (
        nn.Sequential(Adapted(12, 24), nn.ReLU(), Adapted(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval(),
        torch.randn(2, 12),
    )
    result = bough.prune(model, x, bough.Budget(params="50%"))
    masked = bough.mask(model, result.plan)
    for net in (result.model, masked):
        net[0].on = net[2].on = True
    assert result.model[0].base.out_features < 24
    assert torch.allclose(result.model(x), masked(x), atol=1e-5)


def test_a_decoder_that_is_not_called_stays_and_a_tied_head_keeps_what_it_reads():
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
            self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 20))

        def forward(self, x):
            return self.encoder(x)

    result = bough.prune(Coder().eval(), torch.randn(2, 20), bough.Budget(params="60%"))
    assert result.model.decoder(result.model(torch.randn(2, 20))).shape == (2, 20)
    assert result.plan.groups["encoder.0"][0] < 32
    assert "decoder" in result.plan.unreached

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 24), nn.Linear(24, 16)
            self.vocabulary, self.classes = nn.Linear(16, 30, bias=False), nn.Linear(16, 2)
            self.vocabulary.weight = self.embed.weight

        def forward(self, ids, vocabulary=False):
            x = self.down(self.up(self.embed(ids)).relu())
            return self.vocabulary(x) if vocabulary else self.classes(x)

    ids = torch.randint(0, 30, (2, 5))
    result = bough.prune(Tied().eval(), ids, bough.Budget(params="80%"))
    assert result.model(ids, True).shape == (2, 5, 30)
    assert "vocabulary" in result.plan.unreached


def test_the_other_mode_is_run_on_a_doubled_batch_where_one_sample_is_too_few():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mid, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)
            self.auxiliary = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16), nn.Conv2d(16, 12, 1), nn.Flatten(), nn.Linear(12, 5)
            )

        def forward(self, x):
            a = self.stem(x).relu()
            out = self.fc(self.mid(a).relu().mean((2, 3)))
            return (out, self.auxiliary(a)) if self.training else out

    model, x = Auxiliary().eval(), torch.randn(1, 3, 8, 8)
    graph = bough.trace(model, x)
    assert [(r.other_mode, r.doubled) for r in graph.runs] == [(False, False), (True, True)]
    assert not graph.unreached
    assert not graph.notes
    result = bough.prune(model, x, bough.Budget(macs="40%"))
    assert result.model.stem.out_channels < 16
    result.model.train()(torch.randn(4, 3, 8, 8))


def test_buffers_that_only_training_writes_follow_the_cut():
    class Quantizer(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.hidden, self.decoder = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 8)
            self.register_buffer("codes", torch.randn(10, 16))
            self.register_buffer("sums", torch.randn(10, 16))
            self.register_buffer("counts", torch.ones(10))

        def forward(self, x):
            z = self.hidden(self.encoder(x).relu())
            nearest = torch.cdist(z, self.codes).argmin(-1)
            if self.training:
                one_hot = F.one_hot(nearest, 10).to(z)
                self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(one_hot.T @ z, alpha=0.1)
                self.codes.copy_(self.sums / self.counts[:, None])
            return self.decoder(z + (self.codes[nearest] - z).detach())

    result = bough.prune(Quantizer().eval(), torch.randn(5, 8), bough.Budget(params="60%"))
    assert result.model.sums.shape == result.model.codes.shape == (10, result.model.hidden.out_features)
    assert result.model.hidden.out_features < 16
    assert result.model.train()(torch.randn(4, 8)).shape == (4, 8)


def test_a_model_all_of_which_is_reached_says_nothing():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4)
    result = bough.prune(net, x, bough.Budget(params="50%"))
    assert not result.plan.unreached
    assert "no call" not in str(result)


def test_verify_compares_modules_beside_their_siblings_and_names_the_rest():
    model, x = (
        Choice(nn.ModuleDict({"a": mlp(24), "b": mlp(24), "c": nn.Linear(9, 9)}), nn.Linear(24, 3)).eval(),
        torch.randn(2, 8),
    )
    result = bough.prune(model, (x, "a"), bough.Budget(macs="50%"))
    report = result.report
    assert [o.call for o in report.outputs] == ["", "parts.b on the inputs of parts.a"]
    assert report.unreached == ("parts.c",)
    assert "parts.c" in str(report)
    assert report.to_dict()["unreached"] == ["parts.c"]
    with torch.no_grad():
        result.model.parts["b"][2].bias += 1  # whatever the inputs are, the output differs
    wrong = bough.verify(model, result.model, result.plan, (x, "a"))
    assert not wrong.equal
    assert "parts.b on the inputs of parts.a" in str(wrong)


def test_layers_beside_which_others_are_run_can_be_left_out():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc, self.depth = nn.Linear(6, 16), nn.Linear(16, 4), 2
            self.blocks = nn.ModuleList(Block() for _ in range(4))

        def forward(self, x):
            x = self.stem(x)
            for block in list(self.blocks)[: self.depth]:
                x = block(x)
            return self.fc(x)

    model, x = Depth().eval(), torch.randn(2, 6)
    graph = bough.trace(model, x)
    assert [u.name for u in graph.unreached] == ["blocks.2", "blocks.3"]
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, bough.Budget(macs="60%"), drop=["blocks.1"])
    small = bough.cut(model, plan)
    small.depth = 3
    assert small(x).shape == (2, 4)
    for drop in (["blocks.0"], ["blocks.0", "blocks.1"]):
        bough.cut(model, bough.plan(graph, scores, keep=0.5, drop=drop))


def test_with_data_units_that_it_does_not_reach_stay():
    model, x = Choice(nn.ModuleDict({"a": mlp(24), "b": mlp(24)}), nn.Linear(24, 3)).eval(), torch.randn(2, 8)
    result = bough.prune(model, (x, "a"), bough.Budget(macs="50%"), data=[(torch.randn(32, 8), "a") for _ in range(2)])
    assert result.report.equal
    assert "parts.b.0" not in result.plan.groups
    assert result.model(x, "b").shape == (2, 3)
