"""Files are read back bit for bit, in every format; sparse kernels compute what dense ones do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bough
from bough.sparsity import file_sizes, load_sparse, save_sparse, sparsify, use_sparse_kernels
from bough.sparsity.formats import FORMATS
from tests.sparsity.nets import Tied, mlp

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(DTYPES),
    st.floats(0, 1), st.integers(0, 99),
)  # fmt: skip
def test_tensors_round_trip_bit_for_bit(name, shape, dtype, density, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 9).to(dtype)
    tensor[torch.rand(shape, generator=generator) > density] = 0
    if dtype.is_floating_point and tensor.numel() > 2:
        tensor.view(-1)[:2] = torch.tensor([-0.0, float("nan")], dtype=dtype)
    encoded = FORMATS[name].encode(tensor)
    back = FORMATS[name].decode(encoded, tuple(shape), dtype)
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert back.contiguous().view(torch.uint8).equal(tensor.view(torch.uint8))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_files_round_trip(name, compress, tmp_path):
    sparse = sparsify(mlp(), torch.randn(2, 8), 0.75)
    size = save_sparse(sparse.model, tmp_path / "file", format=name, compress=compress)
    assert size == (tmp_path / "file").stat().st_size
    state = load_sparse(tmp_path / "file")
    expected = sparse.remove().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[n], expected[n]) for n in expected)
    assert mlp().load_state_dict(state)


def test_tied_weights_are_stored_once(tmp_path):
    net = sparsify(Tied(), torch.randint(0, 12, (2, 5)), 0.5, only=["embed.weight"]).model
    save_sparse(net, tmp_path / "a")
    assert torch.equal(load_sparse(tmp_path / "a")["head.weight"], net.embed.weight)
    sizes = [file_sizes(m)["dense"]["bytes"] for m in (Tied(), nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8)))]
    assert abs(sizes[0] - sizes[1]) < 12 * 8 * 4


def test_sizes_are_in_the_order_of_what_is_stored():
    net = nn.Linear(256, 256, bias=False)
    dense = file_sizes(net)
    assert dense["csr"]["bytes"] < 1.02 * dense["dense"]["bytes"]  # not encoded where that is larger
    sizes = file_sizes(sparsify(net, torch.randn(1, 256), 0.9).model)
    kept = 6554 * 4
    assert sizes["bitmask"]["bytes"] == pytest.approx(kept + 256 * 256 / 8, rel=0.05)
    assert sizes["csr"]["bytes"] == pytest.approx(kept + 6554 * 2 + 257 * 4, rel=0.05)
    assert sizes["coo"]["bytes"] == pytest.approx(kept + 6554 * 4, rel=0.05)
    assert sizes["dense"]["gzip"] < 0.2 * sizes["dense"]["bytes"]


def test_damaged_files(tmp_path):
    file = tmp_path / "file"
    save_sparse(mlp(), file)
    for content in (b"", b"\x1f\x8bno", file.read_bytes()[:-20], b"{}"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(bough.errors.CheckpointError, match="damaged"):
            load_sparse(tmp_path / "damaged")
    with pytest.raises(bough.errors.CheckpointError, match="No such file"):
        load_sparse(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["csr", "bsr"])
@pytest.mark.parametrize("stride", [1, 2])
def test_sparse_kernels_compute_the_same(layout, stride):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    x = torch.randn(3, 4, 7, 7)
    sparse = sparsify(net, x, 0.8)
    fast = use_sparse_kernels(sparse.model, layout)
    assert fast.layers == ("0", "3", "6")
    assert "groups" in fast.left_out["2"]
    assert torch.allclose(fast.model(x), sparse.model(x), atol=1e-5)


def test_kernels_that_the_machine_lacks_are_refused():
    sparse = sparsify(mlp(), torch.randn(2, 8), pattern="2:4")
    with pytest.raises(bough.errors.PlanError, match="NVIDIA GPUs only, and the model is on cpu"):
        use_sparse_kernels(sparse.model, "semi_structured")
    with pytest.raises(bough.errors.PlanError, match="'csr'"):
        use_sparse_kernels(sparse.model, "dense")
    with pytest.raises(bough.errors.PlanError, match="no weight has zeros"):
        use_sparse_kernels(mlp(), "csr")
