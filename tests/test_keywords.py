"""Functions of torch that rearrange are followed in the same way by position and by keyword."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from tests.zoo import randomize

T = torch.Tensor
W, H = 12, 3  # units, and heads among them; both are attributes of the net

# Each row: the same result [2, 5, W] of x [2, 5, W], in several spellings.
SPELLINGS = {
    "view": [
        lambda m, x: x.view(2, 5, m.h, -1).view(2, 5, m.w),
        lambda m, x: x.view(size=(2, 5, m.h, -1)).view(size=(2, 5, m.w)),
    ],
    "reshape": [
        lambda m, x: x.reshape(2, 5, m.h, -1).reshape(2, 5, m.w),
        lambda m, x: x.reshape(shape=(2, 5, m.h, -1)).reshape(shape=[2, 5, m.w]),
        lambda m, x: torch.reshape(torch.reshape(x, (2, 5, m.h, -1)), shape=(2, 5, m.w)),
        lambda m, x: torch.reshape(input=torch.reshape(input=x, shape=(2, 5, m.h, -1)), shape=(2, 5, m.w)),
    ],
    "unflatten": [
        lambda m, x: x.unflatten(-1, (m.h, m.w // m.h)).flatten(2),
        lambda m, x: x.unflatten(dim=-1, sizes=(m.h, m.w // m.h)).flatten(start_dim=2),
        lambda m, x: x.unflatten(2, sizes=(m.h, -1)).flatten(start_dim=2, end_dim=3),
        lambda m, x: torch.flatten(torch.unflatten(x, -1, (m.h, -1)), 2),
        lambda m, x: torch.flatten(input=torch.unflatten(input=x, dim=-1, sizes=(m.h, -1)), start_dim=-2, end_dim=-1),
    ],
    "transpose": [
        lambda m, x: x.transpose(1, 2).relu().transpose(2, 1),
        lambda m, x: x.transpose(dim0=1, dim1=2).relu().transpose(dim0=2, dim1=1),
        lambda m, x: torch.transpose(input=torch.transpose(x, dim0=1, dim1=-1).relu(), dim0=2, dim1=1),
        lambda m, x: torch.swapaxes(x.swapaxes(axis0=1, axis1=2).relu(), axis0=1, axis1=2),
        lambda m, x: torch.swapdims(x.swapdims(dim0=1, dim1=2).relu(), 1, 2),
    ],
    "permute": [
        lambda m, x: x.permute(2, 0, 1).relu().permute(1, 2, 0),
        lambda m, x: x.permute(dims=(2, 0, 1)).relu().permute(dims=(1, 2, 0)),
        lambda m, x: torch.permute(input=torch.permute(x, dims=(2, 0, 1)).relu(), dims=(1, 2, 0)),
    ],
    "movedim": [
        lambda m, x: x.movedim(2, 0).relu().movedim(0, 2),
        lambda m, x: x.movedim(source=2, destination=0).relu().movedim(source=0, destination=2),
        lambda m, x: torch.moveaxis(torch.movedim(x, source=2, destination=0).relu(), source=0, destination=2),
    ],
    "narrow": [
        lambda m, x: torch.cat([x.narrow(2, 0, m.half).relu(), x.narrow(2, m.half, m.half)], 2),
        lambda m, x: torch.cat([x.narrow(dim=2, start=0, length=m.half).relu(), x.narrow(2, start=m.half, length=m.half)], 2),
        lambda m, x: torch.cat([torch.narrow(input=x, dim=-1, start=0, length=m.half).relu(), x.narrow(-1, m.half, m.half)], 2),
        lambda m, x: torch.cat([torch.narrow(x, 2, start=0, length=m.half).relu(), torch.narrow(x, 2, m.half, m.half)], 2),
    ],
    "split": [
        lambda m, x: torch.cat([p.relu() for p in x.split(m.half, 2)], 2),
        lambda m, x: torch.cat(tensors=[p.relu() for p in x.split(split_size=m.half, dim=2)], dim=2),
        lambda m, x: torch.cat([p.relu() for p in x.split([m.half, m.w - m.half], dim=-1)], dim=-1),
        lambda m, x: torch.cat([p.relu() for p in torch.split(tensor=x, split_size_or_sections=m.half, dim=2)], -1),
        lambda m, x: torch.concat([p.relu() for p in x.split_with_sizes(split_sizes=[m.half, m.w - m.half], dim=2)], dim=2),
        lambda m, x: torch.cat([p.relu() for p in torch.split_with_sizes(x, split_sizes=(m.half, m.w - m.half), dim=2)], 2),
    ],
    "chunk": [
        lambda m, x: torch.cat([p.relu() for p in x.chunk(2, 2)], 2),
        lambda m, x: torch.cat([p.relu() for p in x.chunk(chunks=2, dim=-1)], 2),
        lambda m, x: torch.cat([p.relu() for p in torch.chunk(input=x, chunks=2, dim=2)], 2),
    ],
    "tensor_split": [
        lambda m, x: torch.cat([p.relu() for p in x.tensor_split(2, 2)], 2),
        lambda m, x: torch.cat([p.relu() for p in torch.tensor_split(input=x, sections=2, dim=2)], 2),
    ],
    "expand": [
        lambda m, x: x + x.new_ones(1).expand(2, 5, m.w),
        lambda m, x: x + x.new_ones(1).expand(size=(2, 5, m.w)),
    ],
    "new": [
        lambda m, x: x + x.new_ones(2, 5, m.w) + torch.full((m.w,), 2.0, dtype=x.dtype),
        lambda m, x: x + x.new_ones(size=(2, 5, m.w)) + torch.full(size=(m.w,), fill_value=2.0, dtype=x.dtype),
        lambda m, x: x + torch.ones(size=(2, 5, m.w), dtype=x.dtype) + x.new_full(size=(m.w,), fill_value=2.0),
        lambda m, x: x + torch.zeros(m.w, dtype=x.dtype) + 1 + x.new_full((m.w,), fill_value=2.0),
    ],
    "repeat": [
        lambda m, x: x.unsqueeze(2).repeat(1, 1, m.h, 1).sum(2) / m.h,
        lambda m, x: x.unsqueeze(dim=2).repeat(repeats=(1, 1, m.h, 1)).sum(dim=2) / m.h,
    ],
    "repeat_interleave": [
        lambda m, x: x.repeat_interleave(2, 1).unflatten(1, (5, 2)).sum(2),
        lambda m, x: x.repeat_interleave(repeats=2, dim=1).unflatten(dim=1, sizes=(5, 2)).sum(dim=2),
        lambda m, x: torch.repeat_interleave(input=x, repeats=2, dim=1).unflatten(1, (5, 2)).sum(2),
    ],
    "squeeze": [
        lambda m, x: x.unsqueeze(1).squeeze(1),
        lambda m, x: torch.squeeze(input=torch.unsqueeze(input=x, dim=1), dim=1),
    ],
    "select": [
        lambda m, x: torch.stack([x.select(1, i) for i in range(5)], 1),
        lambda m, x: torch.stack(tensors=[x.select(dim=1, index=i) for i in range(5)], dim=1),
        lambda m, x: torch.stack([torch.select(input=x, dim=1, index=i) for i in range(5)], dim=1),
    ],
    "unbind": [
        lambda m, x: torch.stack(x.unbind(1), 1),
        lambda m, x: torch.stack(torch.unbind(input=x, dim=1), dim=1),
    ],
    "index_select": [
        lambda m, x: x.index_select(1, torch.tensor([4, 0, 1, 2, 3])),
        lambda m, x: x.index_select(dim=1, index=torch.tensor([4, 0, 1, 2, 3])),
    ],
    "gather": [
        lambda m, x: x.gather(1, torch.zeros(2, 5, 1, dtype=torch.long).expand_as(x)),
        lambda m, x: torch.gather(input=x, dim=1, index=torch.zeros(2, 5, 1, dtype=torch.long).expand_as(other=x)),
    ],
    "take_along_dim": [
        lambda m, x: x.take_along_dim(torch.tensor([4, 0, 1, 2, 3])[None, :, None], 1),
        lambda m, x: torch.take_along_dim(input=x, indices=torch.tensor([4, 0, 1, 2, 3])[None, :, None], dim=1),
    ],
    "flip": [lambda m, x: x.flip(1), lambda m, x: torch.flip(input=x, dims=(1,))],
    "roll": [lambda m, x: x.roll(1, 1), lambda m, x: torch.roll(input=x, shifts=1, dims=1)],
    "layer_norm": [
        lambda m, x: F.layer_norm(x, (m.w,)),
        lambda m, x: F.layer_norm(input=x, normalized_shape=(m.w,)),
        lambda m, x: torch.layer_norm(input=x, normalized_shape=(m.w,)),
    ],
    "rms_norm": [lambda m, x: F.rms_norm(x, (m.w,)), lambda m, x: torch.rms_norm(input=x, normalized_shape=(m.w,))],
    "group_norm": [
        lambda m, x: F.group_norm(x.transpose(1, 2), m.h).transpose(1, 2),
        lambda m, x: F.group_norm(input=x.transpose(1, 2), num_groups=m.h).transpose(1, 2),
        lambda m, x: torch.group_norm(input=x.transpose(1, 2), num_groups=m.h).transpose(1, 2),
    ],
    "channel_shuffle": [
        lambda m, x: F.channel_shuffle(x.transpose(1, 2), m.h).transpose(1, 2),
        lambda m, x: torch.channel_shuffle(input=x.transpose(1, 2), groups=m.h).transpose(1, 2),
    ],
    "convolution": [
        lambda m, x: F.conv1d(x.transpose(1, 2), m.taps, None, 1, 0, 1, m.w).transpose(1, 2),
        lambda m, x: F.conv1d(input=x.transpose(1, 2), weight=m.taps, groups=m.w).transpose(1, 2),
        lambda m, x: torch.conv1d(x.transpose(1, 2), m.taps, groups=m.w).transpose(1, 2),
    ],
    "linear": [lambda m, x: F.linear(x, m.mix), lambda m, x: F.linear(input=x, weight=m.mix)],
    "matmul": [
        lambda m, x: x @ m.mix,
        lambda m, x: torch.matmul(input=x, other=m.mix),
        lambda m, x: x.matmul(other=m.mix),
    ],
    "bmm": [
        lambda m, x: torch.bmm(x, m.mix.expand(2, m.w, m.w)),
        lambda m, x: torch.bmm(input=x, mat2=m.mix.expand(size=(2, m.w, m.w))),
        lambda m, x: x.bmm(mat2=m.mix.expand(2, m.w, m.w)),
    ],
    "baddbmm": [
        lambda m, x: torch.baddbmm(x * 0, x, m.mix.expand(2, m.w, m.w)),
        lambda m, x: torch.baddbmm(input=x * 0, batch1=x, batch2=m.mix.expand(2, m.w, m.w)),
    ],
    "addmm": [
        lambda m, x: torch.addmm(x.flatten(0, 1) * 0, x.flatten(0, 1), m.mix).unflatten(0, (2, 5)),
        lambda m, x: torch.addmm(input=x.flatten(0, 1) * 0, mat1=x.flatten(0, 1), mat2=m.mix).unflatten(dim=0, sizes=(2, 5)),
    ],
    "attention": [
        lambda m, x: F.scaled_dot_product_attention(x, x, x, None, 0.0, False, scale=0.3),
        lambda m, x: F.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=False, scale=0.3),
    ],
    "softmax": [lambda m, x: x.softmax(1), lambda m, x: torch.softmax(input=x, dim=1), lambda m, x: F.softmax(input=x, dim=1)],
    "glu": [
        lambda m, x: F.glu(torch.cat([x, x], -1), -1),
        lambda m, x: F.glu(input=torch.cat(tensors=(x, x), dim=-1), dim=-1),
    ],
    "normalize": [lambda m, x: F.normalize(x, 2.0, 1), lambda m, x: F.normalize(input=x, p=2.0, dim=1)],
    "pad": [
        lambda m, x: F.pad(x, (0, 0, 1, 0))[:, 1:],
        lambda m, x: F.pad(input=x, pad=(0, 0, 1, 0), mode="constant", value=0.0)[:, 1:],
    ],
    "tile": [lambda m, x: x.tile((1, 1, 1)), lambda m, x: torch.tile(input=x, dims=(1, 1, 1))],
    "sums": [
        lambda m, x: x - x.mean(1, True) + x.sum(1, True) + x.amax(1, True) + x.var(1, keepdim=True) + x.cumsum(1),
        lambda m, x: x - torch.mean(input=x, dim=1, keepdim=True) + torch.sum(input=x, dim=1, keepdim=True)
        + torch.amax(input=x, dim=1, keepdim=True) + x.var(dim=1, keepdim=True) + torch.cumsum(input=x, dim=1),
    ],
    "sort": [
        lambda m, x: x.sort(1)[0] + x.topk(1, 1)[0],
        lambda m, x: torch.sort(input=x, dim=1)[0] + torch.topk(x, k=1, dim=1)[0],
    ],
    "diagonal": [
        lambda m, x: x + torch.diag_embed(m.diagonal_of).diagonal(0, 0, 1),
        lambda m, x: x + torch.diagonal(input=torch.diag_embed(input=m.diagonal_of, dim1=-2, dim2=-1), dim1=0, dim2=1),
    ],
    "einsum": [lambda m, x: torch.einsum("bnw,wv->bnv", x, m.mix), lambda m, x: torch.einsum("bnw,wv->bnv", [x, m.mix])],
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.enter, self.leave, self.between = nn.Linear(4, W), nn.Linear(W, 3), between
        self.w, self.h, self.half = W, H, W // 2
        self.taps, self.mix, self.diagonal_of = (nn.Parameter(torch.randn(s)) for s in ((W, 1, 1), (W, W), (W,)))

    def forward(self, x):
        return self.leave(self.between(self, self.enter(x)))


def planned(between):
    net, x = (
        randomize(Net(between)).eval(),
        torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.67)
    return graph, plan, bough.verify(net, bough.cut(net, plan), plan, x)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    found = []
    for between in SPELLINGS[name]:
        graph, plan, report = planned(between)
        assert report.equal
        found.append(({g.name: (g.kind, g.size, g.exact) for g in graph.groups}, plan.groups))
    assert all(f == found[0] for f in found)
    assert any(kept < whole for kept, whole in found[0][1].values())
