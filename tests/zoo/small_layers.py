"""More small nets, one layer or tensor operation each: name -> () -> (model, example inputs)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.shim import declare_torchvision_ops


class Unshuffle(nn.Module):
    """Pixels into channels and back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(24, 20, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = F.pixel_unshuffle(F.relu(self.a(x)), 2)
        return self.c(F.pixel_shuffle(F.relu(self.b(x)), 2))


class FoldUnfold(nn.Module):
    """Patches as columns, mixed, and added back to an image."""

    def __init__(self):
        super().__init__()
        self.a, self.mix, self.b = nn.Conv2d(3, 6, 1), nn.Linear(4, 4), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        columns = F.unfold(x, 2, stride=2)
        columns = self.mix(columns.view(len(x), -1, 4, columns.shape[-1]).transpose(2, 3)).transpose(2, 3).flatten(1, 2)
        return self.b(F.fold(columns, x.shape[-2:], 2, stride=2))


class UnfoldedConvolution(nn.Module):
    """A convolution as unfold and a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6 * 9, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.b(F.unfold(F.relu(self.a(x)), 3).transpose(1, 2))).mean(1))


class SpaceToDepth(nn.Module):
    """Strided slices of an image, joined along the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(20, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class Maxout(nn.Module):
    """The largest of three linear pieces."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 24), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).view(len(x), 8, 3).amax(-1))


class GlobalResponse(nn.Module):
    """Global response normalization, channels last."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 10), nn.Linear(10, 3)
        self.gamma, self.beta = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(10))

    def forward(self, x):
        x = F.gelu(self.b(F.relu(self.a(x)).permute(0, 2, 3, 1)))
        norm = x.norm(dim=(1, 2), keepdim=True)
        x = x + self.gamma * x * (norm / (norm.mean(-1, keepdim=True) + 1e-6)) + self.beta
        return self.head(x.mean((1, 2)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.head(x.flatten(2).amax(-1))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.head = nn.Linear(5, 6), nn.Linear(5, 7), nn.Bilinear(6, 7, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.both(F.relu(self.a(x)), torch.tanh(self.b(x)))))


class Bag(nn.Module):
    """An embedding bag with weights, and tokens that tell how many each bag has."""

    def __init__(self, mode: str = "sum"):
        super().__init__()
        self.bag, self.a, self.b = nn.EmbeddingBag(20, 8, mode=mode), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.b(F.relu(self.a(self.bag(ids))))


class Deformable(nn.Module):
    """Deformable convolution with a mask, by torchvision's op."""

    def __init__(self):
        super().__init__()
        declare_torchvision_ops()
        from torchvision.ops import DeformConv2d

        self.a, self.offset, self.mask = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 18, 3, padding=1), nn.Conv2d(6, 9, 3, padding=1)
        self.b, self.head = DeformConv2d(6, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(x, self.offset(x), self.mask(x).sigmoid()))
        return self.head(x.mean((2, 3)))


class RegionFeatures(nn.Module):
    """Boxes of an image, pooled by torchvision's op."""

    def __init__(self):
        super().__init__()
        declare_torchvision_ops()
        from torchvision.ops import roi_align

        self.pool = roi_align
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x, boxes):
        return self.head(F.relu(self.b(self.pool(F.relu(self.a(x)), [boxes, boxes], 2, sampling_ratio=2).flatten(1))))


class Complex(nn.Module):
    """Halves of a width as real and imaginary parts, turned by learned angles."""

    def __init__(self):
        super().__init__()
        self.a, self.angle, self.b = nn.Linear(5, 16), nn.Parameter(torch.randn(8)), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.view_as_complex(torch.tanh(self.a(x)).view(len(x), 8, 2))
        x = x * torch.polar(torch.ones_like(self.angle), self.angle)
        return self.b(torch.view_as_real(x).flatten(1))


class Spectrum(nn.Module):
    """A learned filter on the spectrum along the tokens."""

    def __init__(self):
        super().__init__()
        self.a, self.filter, self.b = nn.Linear(5, 8), nn.Parameter(torch.randn(4, 8, 2)), nn.Linear(8, 3)

    def forward(self, x):
        f = torch.fft.rfft(F.relu(self.a(x)), dim=1) * torch.view_as_complex(self.filter)
        return self.b(torch.fft.irfft(f, n=x.shape[1], dim=1))


class WidthScale(nn.Module):
    """Divides by the root of a width that it reads from a tensor, and by one that it holds."""

    def __init__(self):
        super().__init__()
        self.width, self.a, self.b, self.c = 8, nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.a(x)) * self.width**-0.5
        x = F.relu(self.b(x))
        return self.c(x / x.shape[-1] ** 0.5)


class TiedEmbedding(nn.Module):
    """One matrix reads tokens and scores them."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + torch.tanh(self.a(x)))


class DictOfOutputs(nn.Module):
    """Features at two scales under names, and a tuple of both heads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.fine, self.coarse = nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        fine = F.relu(self.a(image * scale))
        coarse = F.relu(self.b(fine))
        return {"maps": (self.fine(fine), self.coarse(coarse)), "scale": scale}


def wrapped_norms(wrap: Callable[..., nn.Module]) -> nn.Module:
    layers = [wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.Conv2d(8, 6, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)]
    return nn.Sequential(*layers)


def one_dimension() -> nn.Module:
    layers = [nn.Conv1d(4, 12, 3), nn.InstanceNorm1d(12, affine=True), nn.PReLU(12), nn.Conv1d(12, 12, 3, groups=12)]
    return nn.Sequential(*layers, nn.PReLU(), nn.ConvTranspose1d(12, 8, 2, 2), nn.ELU(), nn.MaxPool1d(2), nn.Conv1d(8, 3, 1))


def three_dimensions() -> nn.Module:
    layers = [nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 12, 3, groups=4, padding=1), nn.GroupNorm(2, 12)]
    return nn.Sequential(
        *layers, nn.SiLU(), nn.ConvTranspose3d(12, 6, 2, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def depthwise() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 16, 3, groups=8), nn.InstanceNorm2d(16)]
    return nn.Sequential(*layers, nn.Hardswish(), nn.Conv2d(16, 6, 1), nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 1))


def _of(build: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), torch.randn(shape))


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "pixel_unshuffle": _of(Unshuffle, 2, 3, 8, 8),
    "fold_unfold": _of(FoldUnfold, 2, 3, 8, 8),
    "unfolded_convolution": _of(UnfoldedConvolution, 2, 3, 8, 8),
    "space_to_depth": _of(SpaceToDepth, 2, 3, 8, 8),
    "maxout": _of(Maxout, 2, 5),
    "global_response": _of(GlobalResponse, 2, 3, 8, 8),
    "squeeze_excite": _of(SqueezeExcite, 2, 3, 8, 8),
    "bilinear": _of(Bilinear, 2, 5),
    "embedding_bag": lambda: (Bag(), torch.randint(0, 20, (3, 4))),
    "embedding_bag_mean": lambda: (Bag("mean"), torch.randint(0, 20, (3, 4))),
    "deformable": _of(Deformable, 2, 3, 8, 8),
    "region_features": lambda: (RegionFeatures(), (torch.randn(2, 3, 8, 8), torch.tensor([[0.0, 1, 5, 6], [2, 2, 7, 5]]))),
    "complex": _of(Complex, 2, 5),
    "spectrum": _of(Spectrum, 2, 6, 5),
    "width_scale": _of(WidthScale, 2, 5),
    "tied_embedding": lambda: (TiedEmbedding(), torch.randint(0, 20, (2, 6))),
    "dict_of_outputs": lambda: (DictOfOutputs(), {"image": torch.randn(2, 3, 8, 8), "scale": 0.5}),
    "spectral_norm_hook": _of(lambda: wrapped_norms(nn.utils.spectral_norm), 2, 3, 8, 8),
    "spectral_norm_parametrization": _of(lambda: wrapped_norms(nn.utils.parametrizations.spectral_norm), 2, 3, 8, 8),
    "weight_norm_convolution": _of(lambda: wrapped_norms(nn.utils.parametrizations.weight_norm), 2, 3, 8, 8),
    "one_dimension": _of(one_dimension, 2, 4, 16),
    "three_dimensions": _of(three_dimensions, 2, 2, 6, 6, 6),
    "depthwise": _of(depthwise, 2, 3, 8, 8),
}
