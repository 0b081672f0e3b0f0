"""Which subnets there are, what they cost, and which budgets they meet."""

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.errors import BudgetError, PlanError
from bough.latency import LatencyTable, required_points
from tests.supernet.models import Block, inputs, nested, residual
from tests.zoo import small


def test_widths_are_those_that_a_plan_may_have():
    net = nested(round_to=2, minimum={"*": 0.5, "blocks.1.up": 3}, depth=False)
    widths = {n: w.counts[:, i].tolist() for w in net.space.widths for i, n in enumerate(w.groups)}
    assert widths == {"stem": [6, 4], "blocks.0.up": [8, 6, 4], "blocks.1.up": [8, 6, 4], "blocks.2.up": [8, 6, 4]}
    assert net.smallest.counts == {"stem": 4, "blocks.0.up": 4, "blocks.1.up": 4, "blocks.2.up": 4}
    assert net.largest.counts == {g.name: g.size for g in net.graph.groups}


@pytest.mark.parametrize(
    ("depth", "lists"),
    [
        (False, ()),
        (True, (("blocks.2", "blocks.1"),)),
        ("blocks.*", (("blocks.2", "blocks.1", "blocks.0"),)),
        (["blocks.0", "blocks.2"], (("blocks.0", "blocks.2"),)),
    ],
)
def test_layers_that_may_be_left_out(depth, lists):
    assert nested(depth=depth).space.depths == lists


def test_layers_of_lists_inside_of_a_list():
    net = bough.supernet(
        nn.Sequential(nn.Linear(4, 6), nn.Sequential(Block(6), Block(6)), nn.Linear(6, 3)), inputs(), depth=True
    )
    assert net.space.depths == (("1.1",),)


def test_samples_cover_all_widths_and_depths_and_follow_the_seed():
    net = nested()
    rng = np.random.default_rng(0)
    drawn = [net.sample(rng) for _ in range(80)]
    assert {s.counts["stem"] for s in drawn} == {2, 3, 4, 5, 6}
    assert {s.dropped for s in drawn} == {(), ("blocks.2",), ("blocks.1", "blocks.2")}
    assert all(f"{name}.up" not in s.counts for s in drawn for name in s.dropped)
    assert net.sample(7) == net.sample(7)
    assert {net.sample(i, smallest=1.0).key for i in range(20)} == {net.largest.key}
    assert not any(net.sample(i, smallest=0.5).counts["stem"] < 4 for i in range(20))


def test_predicted_costs_are_those_of_the_extracted_models():
    net, x = nested(), inputs()
    rng = np.random.default_rng(1)
    subnets = [net.smallest, net.middle, net.largest, *(net.sample(rng) for _ in range(5))]
    for subnet, cost in zip(subnets, net.costs(subnets), strict=True):
        assert cost == bough.trace(net.extract(subnet).model, x).cost()
        assert cost.params == sum(p.numel() for p in net.extract(subnet).model.parameters())


def test_a_profile_tells_which_budgets_are_met_before_training():
    net = nested()
    low, high = net.costs([net.smallest, net.largest])
    found = net.profile([bough.Budget(params=low.params), bough.Budget(params=low.params - 1, macs="90%")])
    assert [check.met for check in found.budgets] == [True, False]
    assert found.costs["smallest"] == low
    assert found.costs["largest"] == high == net.graph.cost()
    assert low.params < found.costs["middle"].params < high.params
    with pytest.raises(BudgetError, match=rf"params={low.params - 1}, macs=90%: no subnet meets it .* depth=True"):
        found.require_budgets()
    with pytest.raises(BudgetError, match="the budget can not be reached"):
        net.extract(bough.Budget(params=low.params - 1))
    assert "can be met" in str(found)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("allocation", ["global", "greedy"])
def test_a_subnet_within_a_budget_meets_it(share, allocation):
    net = nested(round_to=2)
    budget = bough.Budget(macs=f"{share:.0%}", peak_memory="95%")
    subnet = net.within(budget, allocation=allocation)
    cost, whole = net.costs([subnet, net.largest])
    assert cost.macs <= share * whole.macs
    assert cost.peak_memory <= 0.95 * whole.peak_memory
    assert net.subnet(subnet) == subnet


def test_layers_are_left_out_only_where_widths_do_not_do():
    net = nested()
    flat = nested(depth=False)
    (widths,) = flat.costs([flat.smallest])
    assert net.within(bough.Budget(params=widths.params)).dropped == ()
    assert net.within(bough.Budget(params=widths.params - 1)).dropped == ("blocks.2",)


def test_a_table_has_a_subnet_for_each_device():
    net, points = nested(), {}
    for key, widths in required_points(net.graph):
        points.setdefault(key, {})[widths] = 1e-6 * sum(widths)
    times = LatencyTable("a chip", "its compiler", 8, 0.0, 0.0, points)
    budgets = {"phone": bough.Budget(macs="70%"), "chip": bough.Budget(latency="80%")}
    sizes = {}

    def evaluate(module):
        assert not module.training
        sizes[sum(p.numel() for p in module.parameters())] = True
        return float(len(sizes))

    table = net.table(budgets, tables={"chip": times}, evaluate=evaluate, data=[inputs(32)])
    assert [row.metric for row in table.rows] == [1.0, 2.0]
    assert {row.cost.params for row in table.rows} == set(sizes)
    assert table["chip"].cost.latency <= 0.8 * net.costs([net.largest], table=times)[0].latency
    again = bough.SubnetTable.from_json(table.to_json())
    assert again == table
    small_model = net.extract(again["phone"]).model
    assert sum(p.numel() for p in small_model.parameters()) == table["phone"].cost.params
    for row in ("phone", "chip"):
        assert row in str(table)


def test_a_table_that_can_not_be(tmp_path):
    net = nested()
    with pytest.raises(BudgetError, match="watch: the budget can not be reached"):
        net.table({"watch": bough.Budget(macs=1)})
    with pytest.raises(BudgetError, match=r"phone: .*needs a table of times"):
        net.table({"phone": bough.Budget(latency="1 ms")})
    with pytest.raises(PlanError, match="tables names 'phone', which has no budget"):
        net.table({"watch": bough.Budget(macs="50%")}, tables={"phone": LatencyTable("a chip", "eager", 8, 0.0, 0.0, {})})
    with pytest.raises(PlanError, match="no table of subnets"):
        bough.SubnetTable.from_json("[1]")
    with pytest.raises(PlanError, match="there is no such file"):
        bough.SubnetTable.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="has no row 'phon'; did you mean 'phone'"):
        net.table({"phone": bough.Budget(macs="50%")})["phon"]
    net.table({"phone": bough.Budget(macs="50%")}).save(tmp_path / "table.json")
    assert bough.SubnetTable.load(tmp_path / "table.json")["phone"].metric is None


def test_groups_that_the_model_binds_change_together():
    net = bough.supernet(*small.ZOO["encoder"]())
    (tied,) = [w for w in net.space.widths if len(w.groups) > 1]
    assert set(tied.groups) == {"0", "1.layers.0.self_attn/head", "1.layers.1.self_attn/head"}
    found = net.subnet({"1.layers.0.self_attn/head": 2})
    assert found.counts["0"] == 8
    assert found.counts["1.layers.1.self_attn/head"] == 2
    with pytest.raises(PlanError, match=r"no subnet has 0=8, 1\.layers\.0\.self_attn/head=3"):
        net.subnet({"0": 8, "1.layers.0.self_attn/head": 3})
    assert net.frozen.keys() == {"1.layers.0.self_attn/head_dim", "1.layers.1.self_attn/head_dim"}
    with pytest.raises(PlanError, match="the width is not elastic, it stays 4"):
        net.subnet({"1.layers.0.self_attn/head_dim": 2})


def test_what_is_ignored_is_not_elastic():
    net = nested(ignore=["stem"], depth=False)
    assert "stem" not in {n for w in net.space.widths for n in w.groups}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "blocks.7"}, "depth: 'blocks.7' is no layer that can be left out; did you mean"),
        ({"minimum": 1.0, "round_to": 100, "depth": False}, "Residual has nothing elastic"),
        ({"minimum": 0}, "must be positive"),
        ({"minimum": {"nothing": 1}}, "'nothing'"),
        ({"round_to": 0}, "round_to=0 must be positive"),
        ({"importance": "taylor"}, "needs a loss"),
        ({"importance": "wanda"}, "needs data"),
        ({"ignore": ["nothing"]}, "nothing"),
    ],
)
def test_supernets_that_can_not_be(options, message):
    with pytest.raises(PlanError, match=message):
        bough.supernet(residual(), inputs(), **{"depth": True, **options})


def test_draws_out_of_range():
    with pytest.raises(PlanError, match="must be from 0 to 1"):
        nested().sample(0, smallest=2)


def test_a_subnet_of_other_data_is_refused():
    for data in ([], {"counts": {"a": 1.5}}, {"counts": {"a": 1}, "dropped": [3]}, {"counts": {"a": 1}, "dropped": "a"}):
        with pytest.raises(PlanError):
            bough.Subnet.from_dict(data)


def test_nothing_to_prune():
    with pytest.raises(PlanError, match="has nothing elastic"):
        bough.supernet(nn.Linear(3, 2), torch.randn(1, 3))
