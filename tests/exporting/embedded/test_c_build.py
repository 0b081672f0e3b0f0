"""The C code, built on this machine without warnings, gives the bytes of the integer reference."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bough.errors import WriteError
from bough.exporting.embedded import export_embedded
from bough.exporting.embedded.folder import runtime_file
from tests.exporting.embedded import test_operators
from tests.exporting.embedded.nets import COMPILER, Residual, randomized, run_make

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) on this machine")


def _checked(model, data, folder):
    made = export_embedded(model, ((data[:1],), {}), folder, data=[data])
    numbers = run_make(folder, "test")
    assert numbers["runs"] == numbers["equal"] == numbers["argmax_equal"] == len(data)
    return made


@needs_compiler
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([11, 23, 37]), st.sampled_from([8, 11, 37]), st.sampled_from([1, 3, 5]), st.integers(1, 2),
    st.integers(1, 2), st.integers(7, 12),
)  # fmt: skip
def test_random_nets_of_odd_widths(tmp_path_factory, width, inner, kernel, stride, dilation, size):
    torch.manual_seed(width * inner + size)
    net = randomized(Residual(width, inner, kernel, stride, dilation))
    _checked(net, torch.randn(12, 3, size, size + 1), tmp_path_factory.mktemp("net") / "c")


class All(nn.Module):
    """Several operators on copies of one input; all results."""

    def __init__(self, modules) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, x):
        return tuple(branch(x) for branch in self.branches)


@needs_compiler
def test_every_operator(tmp_path):
    torch.manual_seed(0)
    for shape in (test_operators.IMAGE, test_operators.SEQUENCE, test_operators.ROW):
        modules = [m for m, s in test_operators.OPERATORS.values() if s == shape]
        folder = tmp_path / f"c{len(shape)}"
        data = torch.randn(10, *shape[1:])
        made = export_embedded(randomized(All(modules)), ((data[:1],), {}), folder, data=[data])
        assert len(made.program.outputs) == len(modules)
        assert run_make(folder, "test")["equal"] == 10


class Chain(nn.Module):
    """Depthwise and pointwise convolutions with strides: results that overlap their inputs both ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1)]
        for stride in (1, 2, 1):
            layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3))


@needs_compiler
@pytest.mark.parametrize("width", [8, 11])
def test_convolutions_that_write_over_their_input(tmp_path, width):
    torch.manual_seed(0)
    made = _checked(Chain(width).eval(), torch.randn(10, 1, 16, 10), tmp_path / "c")
    text = (tmp_path / "c" / "model.c").read_text()
    assert "bough_depthwise_rows_s8" in text
    assert "bough_convolve_rows_s8" in text
    assert made.arena.size < 1.3 * 16 * 10 * width  # two tensors of that size would be live at once


@needs_compiler
def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 11), nn.Linear(7, 11)

        def forward(self, x, y):
            both = self.first(x) + self.second(y)
            return {"sum": both, "positive": both.relu()}

    net, data = Two(), [(torch.randn(9, 5), torch.randn(9, 7))]
    made = export_embedded(net, ((torch.randn(1, 5),), {"y": torch.randn(1, 7)}), tmp_path / "c", data=data)
    assert [port.tensor.size for port in made.program.outputs] == [11, 11]
    assert run_make(tmp_path / "c", "test")["equal"] == 9


def test_only_kernels_that_are_used_are_in_the_folder(tmp_path):
    export_embedded(nn.Linear(3, 2), ((torch.randn(1, 3),), {}), tmp_path / "c", data=[torch.randn(4, 3)])
    assert sorted(f.name for f in (tmp_path / "c/kernels").glob("*.c")) == ["arm_fully_connected_per_channel_s8.c"]
    header = (tmp_path / "c/model.h").read_text()
    assert "int model_run(const int8_t *input, int8_t *output);" in header
    assert "MODEL_INPUT_SCALE" in header
    assert json.loads((tmp_path / "c/model.json").read_text())["arena_bytes"] == 0


def test_a_folder_is_replaced_only_if_asked_and_only_if_an_export_wrote_it(tmp_path):
    net, inputs, data = nn.Linear(3, 2), ((torch.randn(1, 3),), {}), [torch.randn(4, 3)]
    export_embedded(net, inputs, tmp_path / "c", data=data)
    with pytest.raises(WriteError, match="overwrite=True"):
        export_embedded(net, inputs, tmp_path / "c", data=data)
    export_embedded(net, inputs, tmp_path / "c", data=data, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(WriteError, match="not written by bough"):
        export_embedded(net, inputs, tmp_path / "mine", data=data, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "mine"]


def test_a_failed_write_leaves_the_old_folder(tmp_path, monkeypatch):
    net, inputs, data = nn.Linear(3, 2), ((torch.randn(1, 3),), {}), [torch.randn(4, 3)]
    export_embedded(net, inputs, tmp_path / "c", data=data)
    before = (tmp_path / "c/model.c").read_text()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(WriteError, match="No space left"):
        export_embedded(nn.Linear(3, 4), inputs, tmp_path / "c", data=data, overwrite=True)
    assert (tmp_path / "c/model.c").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_shared_files_come_with_the_package():
    assert "arm_convolve_wrapper_s8" in runtime_file("include/arm_nnfunctions.h")
