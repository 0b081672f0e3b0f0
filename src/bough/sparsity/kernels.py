"""Models that run on torch's sparse kernels: CSR and block-sparse products on the CPU, 2:4 semi-structured on a GPU.

Linear layers multiply by a sparse matrix. Convolutions have no sparse kernel in torch, so they are unfolded to a product first,
as a sparse runtime without a kernel of its own would do; what that costs is part of what is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bough.arguments import check_arguments
from bough.cutting.cut import plain_copy
from bough.errors import PlanError
from bough.sparsity.attached_masks import detach_masks_
from bough.sparsity.patterns import follows_pattern

LAYOUTS = ("csr", "bsr", "semi_structured")
BLOCK = (4, 4)  # of block-sparse rows
_CAPABILITY = (8, 0)  # of NVIDIA GPUs that have sparse tensor cores


@dataclass(frozen=True, slots=True)
class SparseKernels:
    """Result of `use_sparse_kernels`.

    Attributes:
        model: for inference; its sparse layers multiply by a sparse matrix.
        layers: names of these layers.
        left_out: layers with zeros that stay dense, with the reason.
    """

    model: nn.Module
    layers: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


class SparseProduct(nn.Module):
    """A linear layer or convolution whose weight is a sparse matrix [outputs, inputs].

    Args:
        layer: an `nn.Linear`, or an `nn.Conv2d` without groups.
        layout: "csr" or "bsr".
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, layout: str) -> None:
        super().__init__()
        matrix = layer.weight.detach().flatten(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch: sparse layouts are in beta
            self.register_buffer("weight", matrix.to_sparse_csr() if layout == "csr" else matrix.to_sparse_bsr(BLOCK))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.window: dict[str, tuple[int, ...]] | None = None
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            self.window = {
                "kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
            }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return what the dense layer returns, up to rounding."""
        if self.window is None:
            y = (self.weight @ x.reshape(-1, x.shape[-1]).T).T
            y = y if self.bias is None else y + self.bias
            return y.reshape(*x.shape[:-1], y.shape[-1])
        height, width = self._places(x)
        columns = F.unfold(x, **self.window)  # type: ignore[arg-type]
        y = self.weight @ columns.transpose(0, 1).reshape(columns.shape[1], -1)
        y = y.view(len(y), len(x), height, width).transpose(0, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _places(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of the outputs."""
        assert self.window is not None
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(x.shape[-2:], *self.window.values(), strict=True)
        )
        return height, width


def use_sparse_kernels(model: nn.Module, layout: str) -> SparseKernels:
    """Return a copy of a sparse model, for inference, whose layers with zeros run on torch's sparse kernels.

    Args:
        model: with zeros in its weights, masks attached or not; stays as it is.
        layout: "csr" or "bsr" (4 x 4 blocks), on the CPU; "semi_structured" (2:4, linear layers), on an NVIDIA GPU in half
            precision.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: an unknown layout, a device without such kernels, or no layer that could use them.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> sparse = bough.sparsify(net, torch.randn(1, 8), 0.75).remove()
        >>> fast = use_sparse_kernels(sparse, "csr")
        >>> x = torch.randn(3, 8)
        >>> fast.layers, torch.allclose(fast.model(x), sparse(x), atol=1e-5)
        (('0', '2'), True)
    """
    check_arguments(use_sparse_kernels, locals())
    check_layout(layout, next((p.device for p in model.parameters()), torch.device("cpu")))
    new = detach_masks_(plain_copy(model)).eval().requires_grad_(False)
    convert: Callable[[nn.Module], nn.Module | str] = _semi_structured if layout == "semi_structured" else _product(layout)
    layers, left_out = [], {}
    for name, module in list(new.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2 or bool((weight != 0).all()):
            continue
        made = convert(module)
        if isinstance(made, str):
            left_out[name] = made
            continue
        layers.append(name)
        if made is not module:
            parent, _, key = name.rpartition(".")
            setattr(new.get_submodule(parent), key, made)
    if not layers:
        why = "; ".join(f"{n}: {w}" for n, w in list(left_out.items())[:3]) or "no weight has zeros"
        raise PlanError(f"no layer of {type(model).__name__} can run on {layout} kernels: {why}")
    return SparseKernels(new, tuple(layers), left_out)


def check_layout(layout: str, device: torch.device) -> None:
    """Raise PlanError if a layout is unknown, or the device has no kernels for it."""
    if layout not in LAYOUTS:
        raise PlanError(f"layout={layout!r} is unknown: use one of {', '.join(map(repr, LAYOUTS))}")
    if layout == "semi_structured":
        if device.type != "cuda" or torch.version.cuda is None:
            raise PlanError(
                f"layout='semi_structured': torch's 2:4 kernels run on NVIDIA GPUs only, and the model is on {device}: move it "
                "there in half precision with model.half().cuda(), or time layout='csr'"
            )
        if torch.cuda.get_device_capability(device) < _CAPABILITY:
            raise PlanError(f"layout='semi_structured': {torch.cuda.get_device_name(device)} has no sparse tensor cores")
    elif device.type != "cpu":
        raise PlanError(f"layout={layout!r} is timed on the CPU, and the model is on {device}: move it with model.cpu()")


def _product(layout: str) -> Callable[[nn.Module], nn.Module | str]:
    def convert(module: nn.Module) -> nn.Module | str:
        if type(module) is nn.Linear:
            shape = module.weight.shape
        elif type(module) is nn.Conv2d:
            if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
                return "a convolution with groups, or with padding other than zeros"
            shape = module.weight.flatten(1).shape
        else:
            return f"{type(module).__name__} has no sparse kernel in torch"
        if layout == "bsr" and (shape[0] % BLOCK[0] or shape[1] % BLOCK[1]):
            return f"{shape[0]} x {shape[1]} is no multiple of {BLOCK[0]} x {BLOCK[1]} blocks"
        return SparseProduct(module, layout)

    return convert


def _semi_structured(module: nn.Module) -> nn.Module | str:
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} has no 2:4 kernel in torch"
    if not follows_pattern(module.weight, "2:4"):
        return "its weight is not 2:4"
    try:
        module.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(module.weight), requires_grad=False)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return module
