"""Modules and functions with weights of their own."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.zoo.shim import declare_torchvision_ops


class Apply(nn.Module):
    """A function of the input and some parameters."""

    def __init__(self, f, **parameters):
        super().__init__()
        self.f = f
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value) if torch.is_floating_point(value) else value)

    def forward(self, x):
        return self.f(self, x)


def _with(f, **shapes):
    """An op with parameters of these shapes, in which "c" stands for the number of units."""

    def make(d):
        sizes = {"c": d.units, "c/2": d.units // 2, "c/4": d.units // 4, "3c": 3 * d.units}
        return Apply(f, **{k: torch.randn([sizes.get(n, n) for n in shape]) for k, shape in shapes.items()})

    return make


class Deform(nn.Module):
    def __init__(self, c, groups, parts, masked=True):
        super().__init__()
        declare_torchvision_ops()
        from torchvision.ops import DeformConv2d

        self.offset, self.mask = nn.Conv2d(c, 18 * parts, 3, padding=1), nn.Conv2d(c, 9 * parts, 3, padding=1)
        self.conv, self.masked = DeformConv2d(c, c, 3, padding=1, groups=groups), masked

    def forward(self, x):
        return self.conv(x, self.offset(x), self.mask(x).sigmoid() if self.masked else None)


class Within(nn.Module):
    """x -> f(module, x) with a module inside."""

    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for k, m in modules.items():
            setattr(self, k, m)

    def forward(self, x):
        return self.f(self, x)


def _fractional(m, x):
    samples = torch.full((x.shape[0], x.shape[1], 2), 0.3, dtype=x.dtype)
    return F.fractional_max_pool2d(x, 2, output_size=3, _random_samples=samples)


def _roi(kind, **options):
    def make(d):
        declare_torchvision_ops()
        import torchvision

        boxes = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 5]], dtype=torch.float64)
        return lambda x: getattr(torchvision.ops, kind)(x, boxes, 2, **options)

    return make


TOKENS = {
    "linear": ("exact", lambda d: nn.Linear(d.units, 6)),
    "linear_without_bias": ("exact", lambda d: nn.Linear(d.units, d.units, bias=False)),
    "raw_matrix": ("exact", _with(lambda m, x: x @ m.w, w=("c", 6))),
    "raw_matrix_transposed": ("exact", _with(lambda m, x: x @ m.w.t(), w=(6, "c"))),
    "diagonal_scale": ("exact", _with(lambda m, x: x * m.w, w=("c",))),
    "diagonal_shift": ("exact", _with(lambda m, x: x + m.w, w=("c",))),
    "layer_scale": ("exact", _with(lambda m, x: x + m.w * x.tanh(), w=("c",))),
    "position_embedding": ("exact", _with(lambda m, x: x + m.w, w=(1, 6, "c"))),
    "class_token": ("exact", _with(lambda m, x: torch.cat((m.w.expand(len(x), -1, -1), x), 1), w=(1, 1, "c"))),
    "query_tokens": ("exact", _with(lambda m, x: (m.w @ x.mT).softmax(-1) @ x, w=(3, "c"))),
    "einsum_heads": ("exact", _with(lambda m, x: torch.einsum("btc,chd->bthd", x, m.w).flatten(2), w=("c", 2, 3))),
    "einsum_by_head": (
        "exact",
        _with(lambda m, x: torch.einsum("bthd,hde->bthe", x.unflatten(-1, (2, -1)), m.w).flatten(2), w=(2, "c/2", "c/2")),
    ),
    "bilinear": ("exact", lambda d: Within(lambda m, x: m.b(x, x.sin()), b=nn.Bilinear(d.units, d.units, 5))),
    "bilinear_without_bias": (
        "exact",
        lambda d: Within(lambda m, x: m.b(x, x), b=nn.Bilinear(d.units, d.units, 5, bias=False)),
    ),
    "addmm": ("exact", _with(lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w)[None], b=(6,), w=("c", 6))),
    "addmm_beta": (
        "exact",
        _with(lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w, beta=0.3, alpha=2)[None], b=(12, 6), w=("c", 6)),
    ),
    "addbmm": ("exact", _with(lambda m, x: torch.addbmm(m.b, x, m.w.expand(2, -1, -1))[None], b=(5,), w=("c", 5))),
    "addmv": ("renormalizes", _with(lambda m, x: x + torch.addmv(m.b, x[0], m.w)[:, None], b=(6,), w=("c",))),
    "addr": ("exact", _with(lambda m, x: torch.addr(x[0], m.t, m.w)[None], t=(6,), w=("c",))),
    "outer": ("exact", _with(lambda m, x: x * torch.outer(m.t, m.w), t=(6,), w=("c",))),
    "dot_with_weights": ("exact", _with(lambda m, x: x * (x @ m.w)[..., None], w=("c",))),
    "tensordot": ("exact", _with(lambda m, x: torch.tensordot(x, m.w, dims=1), w=("c", 5))),
    "cdist_to_prototypes": ("exact", _with(lambda m, x: torch.cdist(x, m.w), w=(7, "c"))),
    "cosine_to_prototypes": (
        "exact",
        _with(lambda m, x: F.normalize(x, dim=-1) @ F.normalize(m.w, dim=-1).t(), w=(7, "c")),
    ),
    "complex_weights": (
        "exact",
        _with(
            lambda m, x: torch.view_as_real(
                torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(m.w)
            ).flatten(-2),
            w=("c/2", 2),
        ),
    ),
    "rotary_complex": (
        "exact",
        lambda d: (
            lambda x: torch.view_as_real(
                torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
                * torch.polar(
                    torch.ones(6, x.shape[-1] // 2, dtype=x.dtype),
                    torch.outer(torch.arange(6, dtype=x.dtype), torch.ones(x.shape[-1] // 2, dtype=x.dtype)),
                )
            ).flatten(-2)
        ),
    ),
    "global_filter": (
        "exact",
        _with(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.w), n=6, dim=1), w=(4, "c", 2)),
    ),
    "layer_norm": ("renormalizes", lambda d: nn.LayerNorm(d.units)),
    "layer_norm_without_bias": ("renormalizes", lambda d: nn.LayerNorm(d.units, bias=False)),
    "layer_norm_over_both": ("renormalizes", lambda d: nn.LayerNorm((6, d.units))),
    "rms_norm": ("renormalizes", lambda d: nn.RMSNorm(d.units)),
    "batch_norm_tokens": ("renormalizes", lambda d: nn.BatchNorm1d(6)),
    "batch_norm": ("exact", lambda d: Within(lambda m, x: m.n(x.transpose(1, 2)).transpose(1, 2), n=nn.BatchNorm1d(d.units))),
    "group_norm_with_units_as_positions": ("renormalizes", lambda d: nn.GroupNorm(2, 6)),
    "instance_norm_over_units": ("renormalizes", lambda d: nn.InstanceNorm1d(6, affine=True)),
    "prelu": ("exact", lambda d: Within(lambda m, x: m.p(x.transpose(1, 2)).transpose(1, 2), p=nn.PReLU(d.units))),
    "embedding_of_argmax": ("cut", lambda d: Within(lambda m, x: m.e(x.argmax(-1)), e=nn.Embedding(d.units, 5))),
    "mixture_of_tables": ("renormalizes", _with(lambda m, x: x.softmax(-1) @ m.w, w=("c", 5))),
    "codebook": ("exact", _with(lambda m, x: m.w[torch.cdist(x, m.w).argmin(-1)], w=(7, "c"))),
    "straight_through": ("exact", _with(lambda m, x: x + (m.w[torch.cdist(x, m.w).argmin(-1)] - x).detach(), w=(7, "c"))),
    "weight_norm": ("exact", lambda d: parametrizations.weight_norm(nn.Linear(d.units, d.units))),
    "spectral_norm": ("cut", lambda d: parametrizations.spectral_norm(nn.Linear(d.units, 6)).eval()),
    "orthogonal": ("frozen", lambda d: parametrizations.orthogonal(nn.Linear(d.units, d.units))),
    "orthogonal_cayley": (
        "frozen",
        lambda d: parametrizations.orthogonal(nn.Linear(d.units, d.units), orthogonal_map="cayley"),
    ),
    "orthogonal_householder": (
        "frozen",
        lambda d: parametrizations.orthogonal(nn.Linear(d.units, d.units), orthogonal_map="householder"),
    ),
    "attention": (
        "cut",
        lambda d: Within(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(d.units, 2, batch_first=True)),
    ),
    "attention_weights": (
        "cut",
        lambda d: Within(
            lambda m, x: sum(t.mean() for t in m.a(x, x, x, average_attn_weights=False)) + x,
            a=nn.MultiheadAttention(d.units, 2, batch_first=True),
        ),
    ),
    "attention_bias_kv": (
        "cut",
        lambda d: Within(
            lambda m, x: m.a(x, x, x)[0],
            a=nn.MultiheadAttention(d.units, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        ),
    ),
    "encoder_layer": ("cut", lambda d: nn.TransformerEncoderLayer(d.units, 2, 12, batch_first=True)),
    "decoder_layer": (
        "cut",
        lambda d: Within(lambda m, x: m.l(x, x), l=nn.TransformerDecoderLayer(d.units, 2, 12, batch_first=True)),
    ),
    "max_norm_embedding": (
        "cut",
        lambda d: Within(lambda m, x: x + m.e(torch.arange(6)), e=nn.Embedding(9, d.units, max_norm=1.0)),
    ),
    "bag_mean": (
        "cut",
        lambda d: Within(
            lambda m, x: x + m.e(torch.tensor([[1, 2], [3, 4]]))[:, None],
            e=nn.EmbeddingBag(9, d.units, mode="mean", padding_idx=3),
        ),
    ),
    "bag_max": (
        "cut",
        lambda d: Within(
            lambda m, x: x + m.e(torch.tensor([1, 2, 3]), torch.tensor([0, 1]))[:, None],
            e=nn.EmbeddingBag(9, d.units, mode="max"),
        ),
    ),
    "bag_weighted": (
        "cut",
        lambda d: Within(
            lambda m, x: (
                x + m.e(torch.tensor([1, 2, 3]), torch.tensor([0, 1]), torch.tensor([0.3, 0.5, 2.0], dtype=x.dtype))[:, None]
            ),
            e=nn.EmbeddingBag(9, d.units, mode="sum"),
        ),
    ),
    "adaptive_softmax": (
        "cut",
        lambda d: Within(
            lambda m, x: m.s.log_prob(x.flatten(0, 1))[None],
            s=nn.AdaptiveLogSoftmaxWithLoss(d.units, 12, [4, 8], div_value=1.0),
        ),
    ),
    "highway": (
        "cut",
        lambda d: Within(
            lambda m, x: m.g(x).sigmoid() * m.h(x).relu() + (1 - m.g(x).sigmoid()) * x,
            g=nn.Linear(d.units, d.units),
            h=nn.Linear(d.units, d.units),
        ),
    ),
    "low_rank": (
        "exact",
        lambda d: Within(
            lambda m, x: x + m.v(m.u(x)) * 2.0, u=nn.Linear(d.units, 4, bias=False), v=nn.Linear(4, d.units, bias=False)
        ),
    ),
    "weight_standardized": (
        "cut",
        _with(lambda m, x: F.linear(x, (m.w - m.w.mean(1, keepdim=True)) / (m.w.std(1, keepdim=True) + 1e-3)), w=(6, "c")),
    ),
    "tied_twice": ("cut", _with(lambda m, x: F.linear(F.linear(x, m.w), m.w.t()), w=(6, "c"))),
    "hypernetwork": ("cut", _with(lambda m, x: torch.bmm(x, (x.mean(1) @ m.w).unflatten(-1, (-1, 3))), w=("c", "3c"))),
    "batched_linear": ("cut", _with(lambda m, x: torch.baddbmm(m.b, x, m.w), b=(2, 1, 5), w=(2, "c", 5))),
    "masked_weight": ("cut", _with(lambda m, x: F.linear(x, m.w * (m.w.detach().abs() > 0.1)), w=(6, "c"))),
    "causal_weight": ("frozen", _with(lambda m, x: F.linear(x, m.w.tril()), w=("c", "c"))),
    "low_rank_matrix": ("exact", _with(lambda m, x: x @ (m.u @ m.v), u=("c", 3), v=(3, 6))),
    "kron_weight": ("cut", _with(lambda m, x: F.linear(x, torch.kron(m.u, m.v)), u=(3, 2), v=(2, "c/2"))),
    "block_diagonal": ("cut", _with(lambda m, x: F.linear(x, torch.block_diag(m.u, m.v)), u=(3, "c/2"), v=(2, "c/2"))),
    "diagonal_weight": ("exact", _with(lambda m, x: x @ torch.diag(m.w), w=("c",))),
    "diag_embed_weight": ("exact", _with(lambda m, x: x @ torch.diag_embed(m.w), w=("c",))),
    "trace_of_weight": ("cut", _with(lambda m, x: x * m.w.trace() @ m.w, w=("c", "c"))),
    "inverse_of_weight": ("frozen", _with(lambda m, x: x @ torch.linalg.inv(m.w), w=("c", "c"))),
    "slice_of_weight": (
        "cut",
        _with(
            lambda m, x: (
                F.linear(x[..., : x.shape[-1] // 2], m.w[:, : x.shape[-1] // 2])
                + F.linear(x[..., x.shape[-1] // 2 :], m.w[:, x.shape[-1] // 2 :])
            ),
            w=(6, "c"),
        ),
    ),
    "table_flipped": ("cut", _with(lambda m, x: x + m.w.flip(0), w=(6, "c"))),
    "norm_of_weight": ("cut", _with(lambda m, x: F.linear(x, m.w / m.w.norm()), w=(6, "c"))),
    "logsumexp_pool": ("exact", _with(lambda m, x: (x @ m.w).logsumexp(1, keepdim=True), w=("c", "c"))),
    "attention_pool": ("cut", _with(lambda m, x: ((x @ m.w).softmax(1)[..., None] * x).sum(1, keepdim=True), w=("c",))),
    "flex_attention": ("cut", lambda d: Flexible(d.units)),
    "autocast": ("cut", lambda d: Within(lambda m, x: m.go(x), go=_Autocast(d.units))),
    "checkpoint": (
        "cut",
        lambda d: Within(
            lambda m, x: torch.utils.checkpoint.checkpoint(m.l, x, use_reentrant=True), l=nn.Linear(d.units, d.units)
        ),
    ),
    "own_function": ("cut", lambda d: lambda x: _Twice.apply(x)),
}


class _Autocast(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.l = nn.Linear(c, c)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.l(x)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Flexible(nn.Module):
    """Attention through a higher-order op."""

    def __init__(self, c):
        super().__init__()
        from torch.nn.attention.flex_attention import flex_attention

        self.attend, self.qkv, self.out = flex_attention, nn.Linear(c, 24), nn.Linear(8, c)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


IMAGE = {
    "conv": ("exact", lambda d: nn.Conv2d(d.units, 6, 3)),
    "conv_same": ("exact", lambda d: nn.Conv2d(d.units, 6, 3, padding="same")),
    "conv_reflect": ("exact", lambda d: nn.Conv2d(d.units, 6, 3, padding=1, padding_mode="reflect")),
    "conv_circular": ("exact", lambda d: nn.Conv2d(d.units, 6, 3, padding=1, padding_mode="circular")),
    "conv_groups": ("exact", lambda d: nn.Conv2d(d.units, 12, 3, groups=2)),
    "depthwise": ("exact", lambda d: nn.Conv2d(d.units, d.units, 3, groups=d.units)),
    "depthwise_multiplied": ("exact", lambda d: nn.Conv2d(d.units, 2 * d.units, 3, groups=d.units)),
    "depthwise_without_bias": ("exact", lambda d: nn.Conv2d(d.units, d.units, 3, groups=d.units, bias=False)),
    "transposed": ("exact", lambda d: nn.ConvTranspose2d(d.units, 6, 3, 2)),
    "transposed_groups": ("exact", lambda d: nn.ConvTranspose2d(d.units, 6, 3, groups=2)),
    "transposed_depthwise": ("exact", lambda d: nn.ConvTranspose2d(d.units, d.units, 3, groups=d.units)),
    "batch_norm": ("exact", lambda d: nn.BatchNorm2d(d.units)),
    "batch_norm_without_weights": ("renormalizes", lambda d: nn.BatchNorm2d(d.units, affine=False)),
    "batch_norm_of_the_batch": ("exact", lambda d: nn.BatchNorm2d(d.units, track_running_stats=False)),
    "instance_norm": ("cut", lambda d: nn.InstanceNorm2d(d.units)),
    "instance_norm_affine": ("exact", lambda d: nn.InstanceNorm2d(d.units, affine=True)),
    "group_norm": ("renormalizes", lambda d: nn.GroupNorm(2, d.units)),
    "group_norm_alone": ("renormalizes", lambda d: nn.GroupNorm(1, d.units)),
    "group_norm_each": ("cut", lambda d: nn.GroupNorm(d.units, d.units)),
    "local_response_norm": ("frozen", lambda d: nn.LocalResponseNorm(3)),
    "max_pool": ("exact", lambda d: nn.MaxPool2d(2, padding=1)),
    "max_pool_ceil": ("exact", lambda d: nn.MaxPool2d(4, ceil_mode=True)),
    "avg_pool": ("exact", lambda d: nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "lp_pool": ("exact", lambda d: nn.LPPool2d(2, 2)),
    "adaptive_max": ("exact", lambda d: nn.AdaptiveMaxPool2d(2)),
    "adaptive_avg_one": ("exact", lambda d: nn.AdaptiveAvgPool2d(1)),
    "max_unpool": ("exact", lambda d: lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "fractional": ("exact", lambda d: Within(_fractional)),
    "nearest": ("exact", lambda d: nn.Upsample(scale_factor=2)),
    "nearest_exact": ("exact", lambda d: nn.Upsample(scale_factor=2, mode="nearest-exact")),
    "bicubic": ("exact", lambda d: nn.Upsample(scale_factor=1.5, mode="bicubic")),
    "bilinear_antialias": ("exact", lambda d: lambda x: F.interpolate(x, (4, 5), mode="bilinear", antialias=True)),
    "area": ("exact", lambda d: lambda x: F.interpolate(x, (4, 5), mode="area")),
    "zero_pad": ("exact", lambda d: nn.ZeroPad2d(1)),
    "constant_pad": ("renormalizes", lambda d: nn.ConstantPad2d(1, 2.0)),
    "reflection_pad": ("exact", lambda d: nn.ReflectionPad2d(1)),
    "replication_pad": ("exact", lambda d: nn.ReplicationPad2d(1)),
    "channel_pad": ("cut", lambda d: lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))),
    "pixel_shuffle": ("cut", lambda d: nn.PixelShuffle(2)),
    "pixel_unshuffle": ("exact", lambda d: nn.PixelUnshuffle(2)),
    "channel_shuffle": ("exact", lambda d: nn.ChannelShuffle(2)),
    "channel_shuffle_groups": ("cut", lambda d: nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(d.units, 6, 1, groups=2))),
    "unfold": ("exact", lambda d: lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2)),
    "grid_sample": (
        "exact",
        lambda d: (
            lambda x: F.grid_sample(
                x,
                F.affine_grid(
                    torch.tensor([[[0.9, 0.1, 0], [0, 1, 0.2]]], dtype=x.dtype).expand(2, -1, -1), x.shape, align_corners=False
                ),
                align_corners=False,
            )
        ),
    ),
    "grid_sample_nearest": (
        "exact",
        lambda d: (
            lambda x: F.grid_sample(
                x, torch.zeros(2, 3, 3, 2, dtype=x.dtype), mode="nearest", padding_mode="border", align_corners=True
            )
        ),
    ),
    "spatial_transformer": (
        "cut",
        lambda d: Within(
            lambda m, x: F.grid_sample(
                x, F.affine_grid(m.l(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False), align_corners=False
            ),
            l=nn.Linear(d.units, 6),
        ),
    ),
    "fft_filter": (
        "exact",
        lambda d: lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * 0.5, s=x.shape[-2:], norm="ortho"),
    ),
    "fourier_layer": (
        "exact",
        lambda d: Apply(
            lambda m, x: torch.fft.irfft2(
                torch.einsum("bchw,cdhw->bdhw", torch.fft.rfft2(x), torch.view_as_complex(m.w)), s=(6, 6)
            ),
            w=torch.randn(d.units, 5, 6, 4, 2),
        ),
    ),
    "gram_matrix": ("frozen", lambda d: lambda x: x.flatten(2) @ x.flatten(2).mT),
    "cross_covariance": (
        "renormalizes",
        lambda d: lambda x: (((t := x.flatten(2)) @ t.mT).softmax(-1) @ t).unflatten(-1, (6, 6)),
    ),
    "squeeze_excite": (
        "cut",
        lambda d: Within(
            lambda m, x: x * m.u(m.d(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
            d=nn.Conv2d(d.units, 4, 1),
            u=nn.Conv2d(4, d.units, 1),
        ),
    ),
    "efficient_channel_attention": (
        "frozen",
        lambda d: Within(
            lambda m, x: x * m.c(x.mean((2, 3))[:, None]).sigmoid().squeeze(1)[..., None, None], c=nn.Conv1d(1, 1, 3, padding=1)
        ),
    ),
    "spatial_attention": (
        "cut",
        lambda d: Within(
            lambda m, x: x * m.c(torch.stack((x.mean(1), x.amax(1)), 1)).sigmoid(), c=nn.Conv2d(2, 1, 3, padding=1)
        ),
    ),
    "simam": ("cut", lambda d: lambda x: x * ((x - x.mean((2, 3), keepdim=True)).pow(2) / 3).sigmoid()),
    "global_response": (
        "renormalizes",
        lambda d: (
            lambda x: x * (x.norm(dim=(2, 3), keepdim=True) / (x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True) + 1e-6))
        ),
    ),
    "channels_last_linear": (
        "exact",
        lambda d: Within(lambda m, x: m.l(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), l=nn.Linear(d.units, 5)),
    ),
    "maxout": ("cut", lambda d: lambda x: x.unflatten(1, (-1, 2)).amax(2)),
    "maxout_by_max": ("cut", lambda d: lambda x: x.view(len(x), x.shape[1] // 2, 2, 6, 6).max(2)[0]),
    "crelu": ("exact", lambda d: lambda x: torch.cat((x, -x), 1).relu()),
    "shift": (
        "cut",
        lambda d: lambda x: torch.cat((x[:, : x.shape[1] // 2].roll(1, 2), x[:, x.shape[1] // 2 :].roll(1, 3)), 1),
    ),
    "deformable": ("cut", lambda d: Deform(d.units, 1, 1)),
    "deformable_groups": ("cut", lambda d: Deform(d.units, 2, 1)),
    "deformable_parts": ("cut", lambda d: Deform(d.units, 1, 2)),
    "deformable_both": ("cut", lambda d: Deform(d.units, 2, 2)),
    "deformable_without_mask": ("cut", lambda d: Deform(d.units, 1, 2, masked=False)),
    "roi_align": ("exact", _roi("roi_align", sampling_ratio=2)),
    "blur_depthwise": (
        "exact",
        lambda d: lambda x: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype), groups=x.shape[1]),
    ),
    "blur_buffer": (
        "exact",
        lambda d: Apply(lambda m, x: F.conv2d(x, m.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]), k=torch.rand(1, 1, 3, 3)),
    ),
    "dynamic_filter": (
        "cut",
        lambda d: Within(
            lambda m, x: F.conv2d(x.flatten(0, 1)[None], m.l(x.mean((2, 3))).view(-1, 1, 3, 3), groups=x.shape[0] * x.shape[1])[
                0
            ].unflatten(0, (len(x), -1)),
            l=nn.Linear(d.units, 9 * d.units),
        ),
    ),
    "weight_standardized": (
        "cut",
        lambda d: Apply(
            lambda m, x: F.conv2d(x, (m.w - m.w.mean((1, 2, 3), keepdim=True)) / m.w.std((1, 2, 3), keepdim=True)),
            w=torch.randn(6, d.units, 3, 3),
        ),
    ),
    "conv_spectral_norm": ("cut", lambda d: parametrizations.spectral_norm(nn.Conv2d(d.units, 6, 3)).eval()),
    "alpha_dropout": ("exact", lambda d: nn.FeatureAlphaDropout()),
    "dropout2d": ("exact", lambda d: nn.Dropout2d()),
    "drop_path": ("exact", lambda d: lambda x: x * x.new_ones((len(x), 1, 1, 1))),
    "box_rows": ("exact", lambda d: lambda x: torch.stack([x[i, :, 1:4, 2:5] for i in range(2)])),
    "lanczos": ("exact", lambda d: lambda x: F.interpolate(x, (4, 4), mode="bicubic", antialias=True)),
}
SIGNAL = {
    "conv1d": ("exact", lambda d: nn.Conv1d(d.units, 6, 3, dilation=2)),
    "conv1d_depthwise_causal": (
        "exact",
        lambda d: Within(lambda m, x: m.c(F.pad(x, (2, 0))), c=nn.Conv1d(d.units, d.units, 3, groups=d.units)),
    ),
    "transposed1d": ("exact", lambda d: nn.ConvTranspose1d(d.units, 6, 4, 2, 1)),
    "lp_pool1d": ("cut", lambda d: nn.Sequential(nn.Sigmoid(), nn.LPPool1d(3, 2))),
    "adaptive_max1d": ("exact", lambda d: nn.AdaptiveMaxPool1d(3)),
    "max_unpool1d": ("exact", lambda d: lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
    "linear1d": ("exact", lambda d: nn.Upsample(scale_factor=2, mode="linear")),
    "conv_tbc": (
        "exact",
        lambda d: Apply(
            lambda m, x: torch.conv_tbc(x.permute(2, 0, 1).contiguous(), m.w, m.b, 1).permute(1, 2, 0),
            w=torch.randn(3, d.units, 5),
            b=torch.randn(5),
        ),
    ),
    "cumulated": ("exact", lambda d: lambda x: x.cumsum(-1)),
    "stft": (
        "frozen",
        lambda d: (
            lambda x: (
                torch.stft(x.flatten(0, 1), 4, 2, window=torch.hann_window(4, dtype=x.dtype), return_complex=True)
                .abs()
                .mean((1, 2))
                .unflatten(0, (2, -1))[..., None]
            )
        ),
    ),
    "gated": ("cut", lambda d: lambda x: F.glu(x, 1)),
    "causal_mean": ("exact", lambda d: lambda x: x.cumsum(-1) / torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)),
    "long_convolution": (
        "exact",
        lambda d: Apply(
            lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=24) * torch.fft.rfft(m.k, n=24), n=24)[..., :12],
            k=torch.randn(d.units, 12),
        ),
    ),
}
VOLUME = {
    "conv3d": ("exact", lambda d: nn.Conv3d(d.units, 6, 3)),
    "avg_pool3d": ("exact", lambda d: nn.AvgPool3d(2)),
    "max_pool3d": ("exact", lambda d: nn.MaxPool3d(2)),
    "trilinear": ("exact", lambda d: nn.Upsample(scale_factor=2, mode="trilinear")),
    "instance_norm3d": ("exact", lambda d: nn.InstanceNorm3d(d.units, affine=True)),
    "grid_sample3d": (
        "exact",
        lambda d: lambda x: F.grid_sample(x, torch.zeros(2, 2, 2, 2, 3, dtype=x.dtype), align_corners=False),
    ),
}
CASES = {
    f"{n}_of_{layout}": (layout, kind, make)
    for layout, table in (("tokens", TOKENS), ("image", IMAGE), ("signal", SIGNAL), ("volume", VOLUME))
    for n, (kind, make) in table.items()
}
