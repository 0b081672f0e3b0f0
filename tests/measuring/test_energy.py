"""Energy: the model against a sum by hand, and the counters against a file tree."""

import pytest
import torch
from torch import nn

import bough
from bough.cost import EnergyModel, Prices
from bough.errors import BudgetError, TraceError
from bough.measuring.energy import Counter, calibrate, counters, joules

NET = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(("kept", "model"), [(6, EnergyModel.of()), (2, EnergyModel.of("int8"))])
def test_the_sum_by_hand(kept, model):
    """Two linear layers and a ReLU, 5 rows: MACs, weights and biases read, activations read and written."""
    graph = bough.trace(NET, torch.randn(5, 4))
    form = Prices(energy=model).form(graph)
    macs = 5 * (4 * kept + kept * 3)
    weights = 4 * kept + kept + kept * 3 + 3
    activations = 5 * ((4 + kept) + (kept + kept) + (kept + 3))
    expected = (
        macs * model.mac
        + weights * model.weight_bytes * model.weight_byte
        + activations * model.activation_bytes * model.activation_byte
    )
    assert form.cost(form.vector({"0": kept})).energy == pytest.approx(expected)


def test_views_move_nothing_and_in_place_ops_do():
    class Net(nn.Module):
        def forward(self, x):
            return x.add(1).view(2, 6).transpose(0, 1).relu_()

    graph = bough.trace(Net(), torch.randn(3, 4))
    model = EnergyModel(0.0, 0.0, 1.0, 4, 1, "one joule a byte")
    assert Prices(energy=model).form(graph).cost().energy == 12 * (2 + 2)


def test_less_precision_takes_less_energy():
    graph = bough.trace(NET, torch.randn(5, 4))
    found = [Prices(energy=EnergyModel.of(p)).form(graph).cost().energy for p in ("float32", "float16", "int8")]
    assert found == sorted(found, reverse=True)
    with pytest.raises(BudgetError, match="precision='fp8' is unknown"):
        EnergyModel.of("fp8")


def package(root, number, name, microjoules, wraps=1_000_000):
    path = root / f"intel-rapl:{number}"
    path.mkdir()
    for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", wraps)):
        (path / file).write_text(f"{text}\n")
    return path


def test_counters_are_found_and_wrap(tmp_path):
    package(tmp_path, "0", "package-0", 10)
    package(tmp_path, "0:0", "core", 99)  # a part of package 0, not counted twice
    package(tmp_path, "1", "package-1", 20)
    found = counters(tmp_path)
    assert [(c.name, c.read()) for c in found] == [("package-0", 10), ("package-1", 20)]
    assert found[0].between(999_990, 15) == pytest.approx(25e-6)
    assert Counter(tmp_path, "no range told", 0).between(5, 15) == pytest.approx(10e-6)


def test_no_counters_is_an_error_that_says_where(tmp_path):
    with pytest.raises(TraceError, match="no energy counters"):
        counters(tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    with pytest.raises(TraceError, match="is no energy counter that can be read"):
        counters(tmp_path)


def test_joules_of_a_run_are_what_the_counter_gains(tmp_path):
    """The counter of this machine draws nothing while idle, and 5 J for each run."""
    path = package(tmp_path, "0", "package-0", 0, wraps=0)

    def run():
        file = path / "energy_uj"
        file.write_text(str(int(file.read_text()) + 5_000_000))

    assert joules(run, 0.01, counters(tmp_path)) == pytest.approx(5.0)


def test_calibration_scales_the_model_to_the_counter(tmp_path):
    path = package(tmp_path, "0", "package-0", 0, wraps=0)

    class Metered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = NET

        def forward(self, x):
            return self.net(x)

    model = Metered()
    x = torch.randn(5, 4)
    graph = bough.trace(model, x)
    file = path / "energy_uj"
    model.register_forward_hook(lambda *_: file.write_text(str(int(file.read_text()) + 3_000_000)) and None)
    found = calibrate(graph, x, seconds=0.01, root=tmp_path)
    assert Prices(energy=found).form(graph).cost().energy == pytest.approx(3.0)
    assert "RAPL (package-0)" in found.source
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random()), bough.Budget(energy="70%"), energy=found)
    assert plan.cost.energy <= 0.7 * 3.0
    assert any("RAPL" in n for n in plan.notes)
