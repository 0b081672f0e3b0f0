"""Laws of sparsify: exact numbers of zeros, patterns in every group, forward passes equal, nothing else changed."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.sparsity import attached_masks, follows_pattern, sparsify
from bough.sparsity.densities import ALLOCATIONS, erk
from bough.sparsity.patterns import Pattern
from bough.sparsity.permutation import best_order, kept_magnitude
from bough.sparsity.reconstruction import solve_sparse
from bough.sparsity.selection import keep_highest
from bough.sparsity.weight_matrices import weight_matrices
from tests.sparsity.nets import Mixed, Tied, batches, mlp

METHODS = ["magnitude", "snip", "wanda", "sparsegpt"]


def loss(model, batch):
    return model(batch).square().mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_number_of_zeros_is_exact(method, allocation):
    net = mlp()
    sparse = sparsify(net, torch.randn(2, 8), 0.7, method=method, allocation=allocation, data=batches(), loss=loss)
    weights = [net[i].weight for i in (0, 2, 4)]
    total = sum(w.numel() for w in weights)
    kept = [int(sparse.masks[f"{i}.weight"].sum()) for i in (0, 2, 4)]
    assert sum(kept) == round(0.3 * total) == sum(x.nonzeros for x in sparse.layers)
    if allocation == "uniform":
        assert all(abs(k - 0.3 * w.numel()) < 1 for k, w in zip(kept, weights, strict=True))
    plain = sparse.remove()
    for i in (0, 2, 4):
        assert bool((plain[i].weight[~sparse.masks[f"{i}.weight"]] == 0).all())
        assert torch.equal(plain[i].bias, net[i].bias)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_patterns_hold_in_every_group(method, pattern):
    sparse = sparsify(mlp(), torch.randn(2, 8), pattern=pattern, method=method, data=batches(), loss=loss)
    n, m = map(int, pattern.split(":"))
    for mask in sparse.masks.values():
        assert follows_pattern(mask, pattern)
        assert (mask.view(len(mask), -1, m).sum(2) == n).all()  # linear layers: rows are outputs, inputs are adjacent


def test_weights_of_all_kinds_of_layers_are_found():
    net = Mixed().eval()
    sparse = sparsify(net, torch.randn(2, 4, 5, 5), 0.5, method="sparsegpt", data=[torch.randn(8, 4, 5, 5)])
    expected = {n for n, p in net.named_parameters() if p.dim() > 1}
    assert set(sparse.masks) == expected
    assert sparse.left_out == {}
    x = torch.randn(2, 4, 5, 5)
    masked = Mixed().eval()
    masked.load_state_dict(sparse.remove().state_dict())
    assert torch.equal(masked(x), sparse.model(x))


def test_patterns_run_along_input_channels_of_each_kernel_position():
    sparse = sparsify(Mixed().eval(), torch.randn(2, 4, 5, 5), pattern="2:4")
    assert follows_pattern(sparse.masks["conv.weight"], "2:4", dim=1)
    assert follows_pattern(sparse.masks["grouped.weight"], "2:4", dim=1)
    assert follows_pattern(sparse.masks["up.weight"], "2:4", dim=0)  # transposed: [inputs, outputs, ...]
    assert follows_pattern(sparse.masks["attention.in_proj_weight"], "2:4", dim=1)
    assert follows_pattern(sparse.masks["raw"], "2:4", dim=0)
    narrow = sparsify(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 2, 2), pattern="2:4")
    assert "no multiple of 4" in narrow.left_out["0.weight"]


def test_matrices_hold_each_element_once():
    graph = bough.trace(Mixed().eval(), torch.randn(2, 4, 5, 5))
    for matrix in weight_matrices(graph)[0]:
        parameter = graph.tensor(matrix.name)
        assert torch.equal(matrix.positions.flatten().sort().values, torch.arange(parameter.numel()))
        copy = torch.zeros_like(parameter)
        matrix.scatter_(copy, matrix.gather(parameter))
        assert torch.equal(copy, parameter)


def test_weights_that_an_embedding_reads_stay_dense_unless_named():
    ids = torch.randint(0, 12, (2, 5))
    sparse = sparsify(Tied(), ids, 0.5)
    assert list(sparse.masks) == ["inner.weight"]
    assert "embedding reads it as well" in sparse.left_out["embed.weight"]
    named = sparsify(Tied(), ids, 0.5, only=["embed.weight"])
    assert named.left_out == {"inner.weight": "outside of only="}
    assert named.model.embed.weight.count_nonzero() == named.model.head.weight.count_nonzero() == 48
    assert set(named.remove().state_dict()) == set(Tied().state_dict())


def test_the_model_stays_as_it_was():
    net = mlp().train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    sparse = sparsify(net, torch.randn(2, 8), 0.5, method="sparsegpt", data=batches())
    assert net.training
    assert sparse.model.training
    assert attached_masks(net) == {}
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.data())
def test_highest_scores_are_kept(blocks, inputs, outputs, per_output, data):
    scores = torch.randn(blocks, inputs, outputs, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    count = data.draw(st.integers(0, scores.numel()))
    kept = keep_highest(scores, count, per_output=per_output)
    assert int(kept.sum()) == count
    if per_output:
        each = kept.sum(1)
        assert int(each.max() - each.min()) <= 1
    for part, chosen in zip(scores.transpose(1, 2).flatten(0, 1), kept.transpose(1, 2).flatten(0, 1), strict=True):
        if chosen.any() and not chosen.all():
            assert part[chosen].min() >= part[~chosen].max()


def test_erk_is_in_proportion_to_dims_and_capped():
    net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 2))
    matrices = weight_matrices(bough.trace(net, torch.randn(1, 100)))[0]
    dims = [(100, 50), (50, 20), (20, 2)]
    counts = erk(matrices, 1500, [])
    assert sum(counts) == 1500
    assert counts[2] == 40  # its share would be above 1
    shares = [c / (a * b) * (a * b) / (a + b) for c, (a, b) in zip(counts[:2], dims, strict=False)]
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


def test_reconstruction_of_one_output_is_close_to_the_best_of_all_masks():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    second, w = x.T @ x / len(x), torch.randn(6, 1, generator=generator, dtype=torch.float64)
    solved = solve_sparse(w[None], second[None], 3, None, 1, 1e-9)

    def error(kept):
        index = list(kept)
        v = torch.zeros_like(w)
        v[index] = torch.linalg.lstsq(x[:, index], x @ w).solution
        return float((x @ (w - v)).square().mean())

    errors = sorted(error(kept) for kept in itertools.combinations(range(6), 3))
    found = float((x @ (w - solved.weight[0])).square().mean())
    magnitude = error(w.abs().flatten().topk(3).indices.tolist())
    assert errors[0] - 1e-9 <= found <= max(magnitude, errors[len(errors) // 4]) + 1e-9
    assert solved.error == pytest.approx(found / float((x @ w).square().mean()))


def test_reconstruction_beats_masks_alone_on_correlated_inputs():
    net, data = mlp(), batches()
    by_magnitude = sparsify(net, data[0], 0.6).remove()
    solved = sparsify(net, data[0], 0.6, method="sparsegpt", data=data).remove()
    x = torch.cat(data)

    def error(model):
        return float((model(x) - net(x)).square().mean().detach())

    assert error(solved) < error(by_magnitude)


def test_wanda_equals_its_formula():
    net, data = mlp(), batches()
    sparse = sparsify(net, data[0], 0.5, method="wanda", data=data)
    scores = net[0].weight.abs() * torch.cat(data).square().mean(0).sqrt()
    kept = torch.zeros(16, 8, dtype=torch.bool).scatter_(1, scores.argsort(1, descending=True)[:, :4], True)
    assert torch.equal(sparse.masks["0.weight"], kept)


def test_snip_equals_its_formula():
    net, data = mlp(), batches()
    sparse = sparsify(net, data[0], 0.5, method="snip", data=data, loss=loss)
    sum(loss(net, b) for b in data).backward()
    score = (net[2].weight * net[2].weight.grad).abs().flatten()
    kept = torch.zeros(256, dtype=torch.bool)
    kept[score.argsort(descending=True)[:128]] = True
    assert torch.equal(sparse.masks["2.weight"].flatten(), kept)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from(["2:4", "1:4", "1:2"]))
def test_permutations_never_keep_less(stripes, columns, seed, text):
    pattern = Pattern.of(text)
    rows = torch.rand(stripes * pattern.m, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = best_order(rows, pattern)
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert kept_magnitude(rows[order], pattern) >= kept_magnitude(rows, pattern) - 1e-9


def test_the_search_finds_the_order_that_loses_nothing():
    rows = torch.zeros(8, 1, dtype=torch.float64)
    rows[:4] = 1.0  # all in one group of four
    assert kept_magnitude(rows[best_order(rows, Pattern(2, 4))], Pattern(2, 4)) == 4.0


def test_permuted_models_compute_the_same_and_keep_more():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    net[1].running_mean.normal_()
    x = torch.randn(2, 4, 6, 6)
    plain, permuted = (sparsify(net.eval(), x, pattern="2:4", permute=p) for p in (False, True))
    energy = [sum(x.kept_energy for x in s.layers) for s in (plain, permuted)]
    assert energy[1] > energy[0]
    assert permuted.permuted.groups
    assert all(after > before for before, after in permuted.permuted.groups.values())
    assert all(follows_pattern(m, "2:4") or m.dim() == 2 for m in permuted.masks.values())
    assert sorted(net[0].weight.flatten().tolist()) == sorted(net[0].weight.flatten().tolist())
    with torch.no_grad():  # all values are there, in another order
        kept = permuted.model[3].bias.sort().values
    assert torch.allclose(kept, net[3].bias.sort().values)


def test_sparse_after_structured():
    net, x = mlp(), torch.randn(2, 8)
    cut = bough.prune(net, x, bough.Budget(params="60%"), round_to=4).model
    sparse = sparsify(cut, x, pattern="2:4").remove()
    assert sparse[0].weight.shape == cut[0].weight.shape
    assert all(follows_pattern(m.weight, "2:4") for m in sparse if isinstance(m, nn.Linear) and m.in_features % 4 == 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one of sparsity"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "give one of sparsity"),
        ({"sparsity": 1.0}, "below 1"),
        ({"pattern": "4:2"}, "0 < N < M"),
        ({"sparsity": 0.5, "method": "lottery"}, "'sparsegpt'"),
        ({"sparsity": 0.5, "method": "wanda"}, "needs data"),
        ({"sparsity": 0.5, "method": "snip", "data": batches()}, "needs loss=fn"),
        ({"sparsity": 0.5, "allocation": "best"}, "'erk'"),
        ({"pattern": "2:4", "allocation": "erk"}, "is for sparsity="),
        ({"sparsity": 0.5, "permute": True}, "is for pattern="),
        ({"pattern": "2:32"}, "no weight of Sequential can be made sparse"),
        ({"sparsity": 0.5, "ignore": ["0", "2", "4"]}, "ignored"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(bough.BoughError, match=said):
        sparsify(mlp(), torch.randn(2, 8), **options)


def test_a_model_with_masks_is_refused():
    sparse = sparsify(mlp(), torch.randn(2, 8), 0.5)
    with pytest.raises(bough.errors.PlanError, match="has masks already"):
        sparsify(sparse.model, torch.randn(2, 8), 0.7)
