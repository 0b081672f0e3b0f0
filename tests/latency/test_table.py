"""Latency tables: sums by hand, monotone stairs, files; and the search for a target. Nothing here is timed."""

import functools
import json
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import nn

import bough
from bough.cost.traffic import moving
from bough.errors import BudgetError, PlanError, TraceError
from bough.latency import LatencyLine, LatencyTable, required_points, to_csv
from bough.latency.grids import Grid, GridLookup
from bough.latency.op_shapes import is_timed, op_shapes, sized
from bough.latency.op_timing import Place, SingleOp
from bough.measuring.runners import eval_mode, runner
from bough.planning.allocation import ALLOCATORS, Milp
from bough.spaces import count
from bough.targeting import meet_latency, of_this_machine
from bough.targeting.correction import correct_table, fitted
from tests.zoo.small import ZOO

OP, BYTE = 2e-6, 1e-9
X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def cubed(key, widths):
    """A made-up time of an op: its multiplications at 1 ns, and 1 us."""
    op = sized(key, widths)
    return 1e-6 + 1e-9 * float(np.prod([n for shape in op.shapes for n in shape[:2]]))


def table_of(graph, time=cubed, quantum=2, **options):
    points = {}
    for key, widths in required_points(graph, quantum):
        points.setdefault(key, {})[widths] = time(key, widths)
    return LatencyTable("a chip", "its compiler", quantum, OP, BYTE, points, **options)


@pytest.fixture(scope="module", params=["residual", "channel_shuffle", "gated_attention", "glu", "transposed"])
def graph(request):
    torch.manual_seed(0)
    model, inputs = ZOO[request.param]()
    return bough.trace(model.eval(), inputs)


def test_the_sum_by_hand():
    net = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, 2))  # ELU is not timed by itself
    graph = bough.trace(net, torch.randn(3, 4))
    table = table_of(graph, lambda key, widths: 1e-6 * widths[0], quantum=4)
    for kept, counted in ((16, 16), (12, 12), (9, 12), (8, 8), (1, 4)):  # the next multiple of 4, which is 16 / 4
        elu = OP + BYTE * 2 * 3 * kept * 4
        assert table.seconds(graph, {"0": kept})[0] == pytest.approx(2 * 1e-6 * counted + elu)
    assert table.scaled(3.0).seconds(graph)[0] == pytest.approx(3 * table.seconds(graph)[0])


def test_the_sum_over_the_ops_equals_brute_force(graph):
    """Of times that are products of widths, which interpolation meets exactly; below the grid that of its least width."""
    table = table_of(graph, lambda _, widths: 1e-7 * float(np.prod(widths)), quantum=1)
    rest = LatencyTable("", "", 1, OP, BYTE, {key: dict.fromkeys(t, 0.0) for key, t in table.points.items()})
    rng = np.random.default_rng(0)
    for _ in range(5):
        counts = {g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups}
        kept = {g.atom: counts[g.name] for g in graph.groups}
        expected = 0.0
        for op in op_shapes(graph):
            least = [min(axis) for axis in zip(*table.points[op.key], strict=True)]
            expected += 1e-7 * np.prod([max(count(s, kept), n) for s, n in zip(op.letters, least, strict=True)])
        assert table.seconds(graph, counts)[0] == pytest.approx(expected + rest.seconds(graph, counts)[0])


def test_more_units_never_take_less_time(graph):
    rng = np.random.default_rng(0)
    noisy = table_of(graph, lambda key, widths: cubed(key, widths) * rng.uniform(0.5, 2.0))
    counts = {g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups}
    for g in graph.groups:
        plans = [{**counts, g.name: n} for n in range(1, g.size + 1)]
        assert (np.diff(noisy.seconds(graph, *plans)) >= -1e-18).all()


@given(st.data())
def test_stairs_are_monotone_meet_monotone_points_and_look_up_several_grids(data):
    grids = []
    for letters in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)):
        axes = [sorted(data.draw(st.sets(st.integers(1, 20), min_size=1, max_size=4))) for _ in range(letters)]
        grids.append(Grid({w: data.draw(st.floats(0, 10)) for w in product(*axes)}, "an op"))
    stairs = GridLookup(grids, data.draw(st.sampled_from([1, 4])))
    most = max((len(g.axes) for g in grids), default=0)
    low = np.array([[data.draw(st.integers(1, 25)) for _ in range(most)] for _ in grids]).reshape(len(grids), most, 1)
    high = low + np.array([[data.draw(st.integers(0, 5)) for _ in range(most)] for _ in grids]).reshape(len(grids), most, 1)
    assert (stairs(high) - stairs(low) >= -1e-9).all()
    top = np.ones((len(grids), most, 1))
    for i, g in enumerate(grids):
        top[i, : len(g.axes), 0] = [a[-1] for a in g.axes]
    assert stairs(top)[:, 0] == pytest.approx([g.times.flat[-1] for g in grids])


@given(st.data())
def test_monotone_times_stay_as_they_are(data):
    steps = data.draw(st.lists(st.floats(0, 5), min_size=6, max_size=6))
    times = np.cumsum(np.array(steps).reshape(2, 3), axis=0).cumsum(axis=1)
    grid = Grid({(8 * (i + 1), 8 * (j + 1)): times[i, j] for i in range(2) for j in range(3)}, "an op")
    assert grid.times == pytest.approx(times)


def test_the_ops_of_a_table_run_alone_and_give_the_shapes_they_gave(graph):
    """Each form at the widths of the model: the op by itself, on random tensors, as `measure` times it."""
    where = Place(torch.device("cpu"), torch.float32, "eager")
    expected = [tuple(a.size for a in op.results[0]) for op in graph.ops if is_timed(op)]
    for shape, result in zip(op_shapes(graph), expected, strict=True):
        op = SingleOp(sized(shape.key, [s.size for s in shape.letters]), where)
        assert tuple(op(*op.inputs).shape) == result
    for key, widths in required_points(graph, 2):
        op = SingleOp(sized(key, widths), where)
        assert op(*op.inputs).isfinite().all()


def test_json_and_csv_round_trip(graph, tmp_path):
    table = table_of(graph, scale=1.25, factors={"linear": 1.5}, op_overhead=1e-6)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    empty = LatencyTable("a chip", "its compiler", 2, OP, BYTE, {}, 1.25, {"linear": 1.5}, 1e-6)
    assert empty.with_csv(table.to_csv()) == table
    asked = to_csv([(key, w, None) for key, w in required_points(graph, 2)])
    with pytest.raises(PlanError, match=r"line 2 of the CSV can not be read"):
        empty.with_csv(asked)  # not filled in
    assert asked.splitlines()[0] == "key,widths,seconds"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, "null", '{"format": "bough-latency-table", "version": 1}', '{"format": "bough-plan"}'],
)
def test_damaged_tables_are_refused(text):
    with pytest.raises(PlanError, match="latency table"):
        LatencyTable.from_json(text)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("quantum", 1.5, "quantum is 1.5"), ("quantum", True, "quantum is true"), ("scale", "2", 'scale is "2"'),
    ("factors", {"linear": None}, r'factors\["linear"\] is null'), ("points", {"k": [[[1.5], 0.1]]}, r"\[0\]\[0\]\[0\] is 1.5"),
    ("points", {"k": [[[8], -0.1]]}, "a latency of -0.1"), ("device", 3, "device is 3"),
])  # fmt: skip
def test_wrong_fields_of_a_table_are_named(graph, field, value, message):
    data = json.loads(table_of(graph).to_json())
    with pytest.raises(PlanError, match=message):
        LatencyTable.from_json(json.dumps({**data, field: value}))


def test_what_a_table_lacks_is_named(graph):
    table = table_of(graph)
    key, times = max(table.points.items(), key=lambda item: len(item[1]))
    without = {k: t for k, t in table.points.items() if k != key}
    with pytest.raises(PlanError, match=r"no times of 1 forms of ops, such as .*onto=table"):
        LatencyTable("a chip", "", 2, OP, BYTE, without).seconds(graph)
    smaller = {w: t for w, t in times.items() if w[0] < max(w[0] for w in times)}
    with pytest.raises(PlanError, match="with a up to"):
        LatencyTable("a chip", "", 2, OP, BYTE, {**table.points, key: smaller}).seconds(graph)
    holes = dict(list(times.items())[1:])
    if len(times) > len({w[0] for w in times}):
        with pytest.raises(PlanError, match="is not complete"):
            LatencyTable("a chip", "", 2, OP, BYTE, {**table.points, key: holes}).seconds(graph)


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_allocators_meet_a_latency_by_the_table(name):
    torch.manual_seed(0)
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    table = table_of(graph)
    scores = bough.score(graph, bough.importance.Random())
    plan = bough.plan(graph, scores, bough.Budget(latency="80%"), table=table, allocation=name)
    counts = {n: k for n, (k, _) in plan.groups.items()}
    assert plan.cost.latency == table.seconds(graph, counts)[0] <= 0.8 * table.seconds(graph)[0]
    assert any("a chip, its compiler" in n for n in plan.notes)
    assert bough.Plan.from_json(plan.to_json()) == plan


def test_milp_finds_the_best_plan_for_a_table():
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    table, scores = table_of(graph, quantum=4), bough.score(graph, bough.importance.Random(5))
    plan = bough.plan(graph, scores, bough.Budget(latency="75%"), table=table, allocation=Milp(widths=12, relative=False))

    def lost(counts):
        return sum(np.sort(scores[g.name])[: g.size - counts[g.name]].sum() for g in graph.groups)

    names = [g.name for g in graph.groups]
    every = [dict(zip(names, c, strict=True)) for c in product(*(range(1, g.size + 1) for g in graph.groups))]
    times = table.seconds(graph, *every)
    best = min(lost(c) for c, t in zip(every, times, strict=True) if t <= 0.75 * table.seconds(graph)[0])
    assert lost({n: k for n, (k, _) in plan.groups.items()}) == pytest.approx(best)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 400), nn.Linear(400, 300), nn.Linear(300, 4)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def targeted(law, target, **options):
    graph = bough.trace(Wide(), torch.randn(2, 8))
    scores = bough.score(graph, bough.importance.Random())
    return graph, meet_latency(graph, scores, bough.Budget(latency=target), table_of(graph), measure=law, **options)


def elements(model):
    return sum(p.numel() for p in model.parameters())


LAWS = {
    "linear": lambda m: 1e-8 * elements(m),
    "with a floor": lambda m: 5e-5 + 2e-8 * elements(m),
    "bent": lambda m: 1e-6 * elements(m) ** 0.8,
    "steep": lambda m: 1e-14 * elements(m) ** 2,
}


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("target", ["75%", "50%", "33%"])
def test_targets_are_met_within_5_percent_as_measured(law, target):
    """Measured is here a law that the table, made by another one, does not know."""
    graph, timed = targeted(LAWS[law], target)
    assert timed.met
    assert 0.95 * timed.target <= timed.seconds <= timed.target
    assert timed.target == pytest.approx(float(target[:-1]) / 100 * LAWS[law](Wide()))
    assert LAWS[law](timed.model) == timed.seconds
    counts = {n: k for n, (k, _) in timed.plan.groups.items()}
    assert timed.table.seconds(graph, counts)[0] == pytest.approx(timed.seconds)
    assert any("measured" in n and "asked" in n for n in timed.plan.notes)


class Cliffs(nn.Sequential):
    """Layers whose time jumps, each at a width of its own that no table knows of."""

    def __init__(self) -> None:
        super().__init__(*(layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 4))

    def seconds(self, height: float) -> float:
        layers = [x for x in self if isinstance(x, nn.Linear)]
        return 1e-9 * sum(
            x.in_features * x.out_features * (1 + height * (x.out_features > 40 + i % 3)) for i, x in enumerate(layers)
        )


@pytest.mark.parametrize("height", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", ["85%", "75%", "60%", "33%"])
def test_where_the_time_jumps_groups_are_mixed(height, target):
    """Uniform widths are all on one side of their cliffs: no limit on the table's sum gives what is asked for."""
    graph = bough.trace(Cliffs(), torch.randn(2, 64))
    scores = bough.score(graph, bough.importance.Random())
    timed = meet_latency(
        graph, scores, bough.Budget(latency=target), table_of(graph), allocation="uniform",
        measure=lambda model: model.seconds(height),
    )  # fmt: skip
    assert timed.met
    assert timed.model.seconds(height) == timed.seconds


@pytest.mark.parametrize("above", [1.01, 1.03, 1.2])
def test_targets_just_above_the_smallest_model_are_met(above):
    """The table takes smaller models for faster than they are, and so the limits that it is asked for become unreachable."""
    law, model = LAWS["with a floor"], Wide()
    graph = bough.trace(model, torch.randn(2, 8))
    scores = bough.score(graph, bough.importance.Random())
    smallest = bough.cut(model, bough.plan(graph, scores, keep=0.5))
    share = 100 * above * law(smallest) / law(model)
    _, timed = targeted(law, f"{share}%", minimum=0.5)
    assert timed.met
    with pytest.raises(BudgetError):
        targeted(law, f"{share * 0.9 / above}%", minimum=0.5)


def test_other_limits_hold_between_two_plans_too():
    graph = bough.trace(Cliffs(), torch.randn(2, 64))
    scores = bough.score(graph, bough.importance.Random())
    budget = bough.Budget(latency="75%", params="66%")
    timed = meet_latency(
        graph, scores, budget, table_of(graph), allocation="uniform", measure=lambda model: model.seconds(1.0)
    )  # fmt: skip
    assert timed.plan.cost.params <= 0.66 * timed.plan.original.params
    assert timed.seconds <= timed.target


def test_steps_too_coarse_for_the_tolerance_give_the_best_below_and_say_so():
    _, timed = targeted(LAWS["linear"], "50%", tolerance=1e-5, rounds=6, round_to=100)
    assert not timed.met
    assert timed.seconds <= timed.target
    assert any("no plan was within" in n for n in timed.plan.notes)


def test_a_target_that_measuring_never_meets_is_an_error():
    with pytest.raises(BudgetError, match="was measured below"):
        targeted(lambda m: 1.0, "50%", rounds=3)
    graph = bough.trace(Wide(), torch.randn(2, 8))
    with pytest.raises(BudgetError, match="needs a budget of latency"):
        meet_latency(graph, {}, bough.Budget(macs="50%"), table_of(graph))


def test_a_table_measured_here_is_complete_saved_and_of_this_machine_only(tmp_path):
    graph = bough.trace(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(3, 4))
    path = tmp_path / "table.json"
    table = LatencyTable.measure(graph, seconds=0.0, path=path, progress=False)
    assert {(k, w) for k, times in table.points.items() for w in times} == set(required_points(graph))
    assert LatencyTable.load(path) == table
    assert table.seconds(graph)[0] > 0
    first = json.loads(path.read_text())
    key = next(iter(first["points"]))
    removed = first["points"][key].pop()
    path.write_text(json.dumps(first))
    again = LatencyTable.measure(graph, seconds=0.0, path=path, progress=False)  # what is missing only
    assert tuple(removed[0]) in again.points[key]
    assert {k: t for k, t in again.points.items() if k != key} == {k: t for k, t in table.points.items() if k != key}
    remote = LatencyTable.measure(list(required_points(graph)), seconds=0.0, progress=False)  # where there is no model
    assert remote.points.keys() == table.points.keys()
    assert of_this_machine(remote, graph)
    assert not of_this_machine(table_of(graph), graph)
    with pytest.raises(TraceError, match=r"the table is of .*: here it is"):
        LatencyTable.measure(graph, seconds=0.0, onto=LatencyTable("a phone", "eager", 8, 0.0, 0.0), progress=False)
    with pytest.raises(TraceError, match="backend='tpu' is unknown"):
        LatencyTable.measure(graph, "tpu", seconds=0.0, progress=False)


def test_prune_takes_the_word_of_a_table_of_another_machine_and_says_so():
    net = Wide()
    graph = bough.trace(net, torch.randn(2, 8))
    result = bough.prune(net, torch.randn(2, 8), bough.Budget(latency="50%"), table=table_of(graph))
    assert result.latency is None
    assert any("predicted from a table of a chip" in n for n in result.plan.notes)
    assert result.report.equal


def test_every_model_of_many_is_compiled_and_for_its_own_shapes(monkeypatch):
    """torch leaves the ninth version of one function uncompiled, and makes the second for any size."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(x.shape) for x in inputs])
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    widths = range(2, 14)
    for n in widths:
        with eval_mode(net := nn.Linear(n, 3)):
            run = runner(net, torch.randn(2, n), "compile")
            assert torch.equal(run(), run())
    assert [(2, n) in shapes for n, shapes in zip(widths, graphs, strict=True)] == [True] * len(widths)


def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TraceError, match=r"needs onnx: pip install bough\[onnx\]"):
        runner(nn.Linear(2, 2), torch.randn(1, 2), "onnxruntime")


def test_runners_give_what_the_model_gives_and_leave_its_mode():
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    x = torch.randn(4, 2)
    with eval_mode(net):
        assert torch.equal(runner(net, {"input": x})(), net(x))
    assert all(m.training for m in net.modules())


def test_few_units_count_one_by_one():
    """Heads: a quantum of 8 is for the dims of each."""
    model, inputs = ZOO["gated_attention"]()
    graph = bough.trace(model.eval(), inputs)
    table = table_of(graph, quantum=8)
    heads = next(g for g in graph.groups if g.kind == "head")
    times = table.seconds(graph, *({heads.name: n} for n in range(1, heads.size + 1)))
    assert (np.diff(times) > 0).all()


def test_factors_are_by_name_and_add_up():
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    plain, counts = table_of(graph), np.array([[float(g.size) for g in graph.groups]])
    parts = plain.part(graph).seconds_by_op(counts)
    assert sum(parts.values())[0] == pytest.approx(plain.seconds(graph)[0])
    factors = {name: 1.0 + i for i, name in enumerate(parts)}
    expected = sum(factors[name] * seconds[0] for name, seconds in parts.items())
    assert table_of(graph, factors=factors).seconds(graph)[0] == pytest.approx(expected)
    ops = len(list(moving(graph)))
    slower = table_of(graph, factors=factors, op_overhead=1e-5, scale=2.0)
    assert slower.seconds(graph)[0] == pytest.approx(2 * (expected + 1e-5 * ops))


def test_correcting_finds_what_a_machine_takes():
    """Measured is the table's own sum with other factors, and noise of 1 %."""
    torch.manual_seed(0)
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    table = table_of(graph, quantum=1)
    machine = replace(table, scale=3.0, factors={"convolution": 0.5, "batch_norm": 4.0, "relu": 6.0})
    rng = np.random.default_rng(0)

    def measure(model):
        counts = {"stem": model.stem.out_channels, "a": model.a.out_channels}
        return float(machine.seconds(graph, counts)[0]) * rng.uniform(0.99, 1.01)

    found = correct_table(graph, table, measure, plans=16)
    counts = [{g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups} for _ in range(20)]
    scaled = table.scaled(float(machine.seconds(graph)[0] / table.seconds(graph)[0]))
    wrong, before = (np.abs(t.seconds(graph, *counts) / machine.seconds(graph, *counts) - 1).max() for t in (found, scaled))
    assert wrong < 0.05 < 0.15 < before


def test_correcting_finds_an_overhead_of_each_op():
    """Measured is 1.2 times the table's sum, and an overhead that is most of the time of small models."""
    torch.manual_seed(0)
    graph = bough.trace(nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 4)), X)
    table = table_of(graph, quantum=8)
    names = [g.name for g in graph.groups]
    machine = replace(table, scale=1.2, op_overhead=float(table.seconds(graph)[0]) / 9)

    def measure(model):
        counts = dict(zip(names, (m.out_features for m in model if isinstance(m, nn.Linear)), strict=False))
        return float(machine.seconds(graph, counts)[0])

    found = correct_table(graph, table, measure, plans=16)
    rng = np.random.default_rng(0)
    counts = [{n: 8 * int(rng.integers(1, 9)) for n in names} for _ in range(20)]
    assert found.seconds(graph, *counts) == pytest.approx(machine.seconds(graph, *counts), rel=0.03)
    negative = correct_table(graph, table, lambda model: 1e-3 * sum(p.numel() for p in model.parameters()) ** 2)
    assert negative.op_overhead == 0.0


@given(st.data())
def test_a_line_is_that_of_nonnegative_least_squares(data):
    """Where it rises, by a hundredth of the ratio at least; otherwise the ratio of least squares is taken."""
    positive = st.floats(0.1, 10)
    rows = data.draw(st.lists(st.tuples(st.integers(1, 50), positive, positive), min_size=1, max_size=6))
    ops, predicted, measured = np.array(rows).T
    line = LatencyLine.fitted(ops, predicted, measured)
    x = np.stack([ops, predicted], axis=1) / measured[:, None]
    overhead, slope = nnls(x, np.ones(len(x)))[0]

    def error(*coefficients):
        return float(np.square(x @ coefficients - 1).sum())

    for exact, rounded in zip((line.op_overhead, line.slope), (line.rounded().op_overhead, line.rounded().slope), strict=True):
        assert rounded == pytest.approx(exact, rel=0.0051)
    ratio = nnls(x[:, 1:], np.ones(len(x)))[0][0]
    if line.op_overhead > 0:
        assert line.slope > 0.01 * ratio
        assert error(line.op_overhead, line.slope) == pytest.approx(error(overhead, slope), abs=1e-6)
    else:
        assert line.slope == pytest.approx(ratio)
        distinct = np.linalg.cond(x) < 1e2
        assert overhead == pytest.approx(0, abs=1e-6) or slope <= 0.0101 * ratio or not distinct


def test_a_table_on_a_line_predicts_what_the_line_says(graph):
    table, rng = table_of(graph, scale=1.5, factors={"linear": 2.0}, op_overhead=1e-6), np.random.default_rng(0)
    line, ops = LatencyLine(3e-6, 0.4), table.part(graph).ops
    counts = [{g.name: int(rng.integers(1, g.size + 1)) for g in graph.groups} for _ in range(5)]
    assert table.on_line(line).seconds(graph, *counts) == pytest.approx(3e-6 * ops + 0.4 * table.seconds(graph, *counts))


@pytest.mark.parametrize(("round_to", "step"), [(None, 4), (8, 8), (1, 1)])
def test_cuts_that_correct_a_table_have_widths_that_it_knows(round_to, step):
    torch.manual_seed(0)
    graph = bough.trace(
        nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)), torch.randn(1, 4)
    )
    seen = []
    correct_table(graph, table_of(graph, quantum=4), lambda model: seen.append(model) or 1.0, plans=8, round_to=round_to)
    widths = [m[i].out_features for m in seen for i in (0, 2)]
    assert all(n % step == 0 for n in widths)
    assert len(set(widths)) > 2
    with pytest.raises(bough.BoughError, match="round_to=0"):
        correct_table(graph, table_of(graph), lambda model: 1.0, round_to=0)


@given(st.integers(0, 10**6))
def test_exact_times_give_the_factors(seed):
    rng = np.random.default_rng(seed)
    parts, factors = rng.uniform(1, 100, (30, 4)), rng.uniform(0.5, 2.0, 4)
    assert fitted(parts, parts @ factors) == pytest.approx(factors, rel=0.05)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.inner = kind(8, 12, batch_first=True, **options)
        self.out = nn.LazyLinear(3)

    def forward(self, x):
        return self.out(self.inner(x)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options"), [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2, "bidirectional": True}), (nn.RNN, {"bias": False})]
)
def test_recurrent_layers_run_alone(kind, options):
    x = torch.randn(2, 6, 8)
    model = Recurrent(kind, **options).eval()
    model(x)
    graph = bough.trace(model, x)
    for shape in op_shapes(graph):
        single = SingleOp(sized(shape.key, [4] * len(shape.letters)), Place(torch.device("cpu"), torch.float32, "eager"))
        with eval_mode(single):
            runner(single, tuple(single.inputs))()


@pytest.mark.parametrize("seconds", ["nan", "-1e-3", "inf"])
def test_times_that_are_none_are_refused(seconds):
    graph = bough.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    text = to_csv((key, widths, float(seconds)) for key, widths in required_points(graph))
    with pytest.raises(PlanError, match="seconds"):
        LatencyTable("a", "b", 8, 0.0, 0.0).with_csv(text)


def test_a_csv_may_begin_with_a_byte_order_mark():
    graph = bough.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    text = to_csv((key, widths, 1e-3) for key, widths in required_points(graph))
    empty = LatencyTable("a", "b", 8, 0.0, 0.0)
    assert empty.with_csv("\ufeff" + text).points == empty.with_csv(text).points
    with pytest.raises(PlanError, match="can not be read"):
        LatencyTable.load("no/such/table.json")


def test_another_bound_may_decide():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    graph = bough.trace(model, torch.randn(1, 16))
    points = {}
    for key, widths in required_points(graph):
        points.setdefault(key, {})[widths] = 1e-6 * max(sum(widths), 1)
    table = LatencyTable("a", "b", 8, 0.0, 0.0, points)
    asked = []

    def measure(small):
        asked.append(small)
        return 1e-6 * (10 + small[0].out_features)

    found = meet_latency(graph, bough.score(graph, "l2"), bough.Budget(latency="90%", params="25%"), table, measure=measure)
    assert found.met
    assert len(asked) == 2  # the original and one plan
    assert "another bound" in found.plan.notes[-1]
