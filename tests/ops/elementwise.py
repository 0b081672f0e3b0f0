"""Ops that leave the units where they are: name -> (layout, what becomes of the units, options -> op).

The second entry is what a sum over the op's result makes of the units: "exact" where masked units come out zero,
"renormalizes" where they do not, or where a statistic runs over them; "frozen" where no unit may go.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _plain(f):
    return lambda d: f


def _in_place(change):
    """The op on a copy, in place."""

    def op(x):
        x = x.clone()
        change(x)
        return x

    return lambda d: op


ZERO_STAYS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "sin": torch.sin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "erf": torch.erf,
    "expm1": torch.expm1,
    "square": torch.square,
    "abs": torch.abs,
    "sqrt_of_abs": lambda x: x.abs().sqrt(),
    "log1p_of_abs": lambda x: x.abs().log1p(),
    "sign": torch.sign,
    "round": torch.round,
    "frac": torch.frac,
    "nan_to_num": torch.nan_to_num,
    "negative": torch.neg,
    "power": lambda x: x**3,
    "power_of_a_tensor": lambda x: x.abs() ** torch.tensor(1.5, dtype=x.dtype),
    "times_a_number": lambda x: 3 * x,
    "divided": lambda x: x / 7,
    "divided_by_a_positive": lambda x: x / (1 + x * x),
    "floor_divided": lambda x: x // 0.3,
    "remainder": lambda x: x.remainder(0.3),
    "fmod": lambda x: x.fmod(0.3),
    "plus_itself": lambda x: x + x.sin(),
    "minus_itself": lambda x: x - x.tanh(),
    "subtracted_from_itself": lambda x: torch.rsub(x, x.tanh()),
    "maximum": lambda x: torch.maximum(x, x.sin()),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
    "lerp_by_a_tensor": lambda x: torch.lerp(x, x.sin(), x.sigmoid()),
    "addcmul": lambda x: torch.addcmul(x, x.sigmoid(), x.sin(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x.sin(), x.cosh()),
    "swish_by_hand": lambda x: x * x.sigmoid(),
    "clamped_around_zero": lambda x: x.clamp(-0.5, 0.4),
    "clipped_below_zero": lambda x: x.clamp(min=-0.1),
    "clamp_min_zero": lambda x: x.clamp_min(0),
    "threshold_at_zero": lambda x: F.threshold(x, 0.0, 0.0),
    "where_of_itself": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill_with_zero": lambda x: x.masked_fill(x > 0.2, 0.0),
    "masked_by_a_comparison": lambda x: x * (x > 0.1),
    "softmax_over_tokens_times": lambda x: x * x.softmax(0),
    "hypot": lambda x: torch.hypot(x, x.sin()),
    "atan2": lambda x: torch.atan2(x, x * x + 1),
    "to_half_and_back": lambda x: x.to(torch.float32).to(x.dtype),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "feature_dropout": lambda x: F.dropout1d(x, 0.5, training=False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=False),
}
ZERO_MOVES = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "cos": torch.cos,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "reciprocal": lambda x: (x * x + 1).reciprocal(),
    "acos": lambda x: x.tanh().acos(),
    "log": lambda x: (x * x + 2).log(),
    "plus_a_number": lambda x: x + 3,
    "added_to_a_number": lambda x: 3 - x,
    "plus_an_alpha": lambda x: torch.add(x, torch.ones((), dtype=x.dtype), alpha=2),
    "power_of_zero": lambda x: x**0,
    "base": lambda x: 2.0**x,
    "power_of_itself": lambda x: x.abs() ** x.abs(),
    "clamped_above_zero": lambda x: x.clamp(0.2, 0.9),
    "clamp_min": lambda x: x.clamp_min(0.3),
    "clamp_max_below": lambda x: x.clamp_max(-0.3),
    "clamp_by_a_tensor": lambda x: x.clamp(min=torch.full((), 0.3, dtype=x.dtype)),
    "hardtanh_above": lambda x: F.hardtanh(x, 0.2, 0.9),
    "threshold_above": lambda x: F.threshold(x, 0.3, 5.0),
    "nan_to_num_of_quotient": lambda x: torch.nan_to_num(x / x, nan=2.0),
    "maximum_with_a_number": lambda x: torch.maximum(x, torch.full((), 0.4, dtype=x.dtype)),
    "where_with_a_number": lambda x: torch.where(x > 0, x, 1.0),
    "where_turned": lambda x: torch.where(x > 0, x, torch.ones_like(x)),
    "masked_fill": lambda x: x.masked_fill(x < 0.2, 2.0),
    "masked_fill_where_zero": lambda x: x.masked_fill(x == 0, 2.0),
    "comparison": lambda x: (x <= 0.1).to(x.dtype),
    "logical_not": lambda x: torch.logical_not(x > 0).to(x.dtype),
    "isclose": lambda x: torch.isclose(x, x * 2).to(x.dtype),
    "zeros_power": lambda x: torch.zeros_like(x) ** x.abs(),
    "ones_like": lambda x: x + torch.ones_like(x),
    "full_like": lambda x: x + torch.full_like(x, 0.3),
    "heaviside": lambda x: torch.heaviside(x, torch.ones((), dtype=x.dtype)),
    "logit": lambda x: torch.logit(x.sigmoid() * 0.9),
    "logaddexp": lambda x: torch.logaddexp(x, x.sin()),
    "xlogy": lambda x: torch.xlogy(x * x + 2, x * x + 2),
    "lerp_with_a_number": lambda x: torch.lerp(x, torch.ones((), dtype=x.dtype), 0.3),
    "addcmul_of_ones": lambda x: torch.addcmul(x, torch.ones_like(x), torch.ones_like(x)),
    "erfc": torch.erfc,
    "cosh": torch.cosh,
    "softmax": lambda x: x.softmax(-1),
    "softmin": lambda x: F.softmin(x, -1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "normalized": lambda x: F.normalize(x, dim=-1) + 0.1,
    "layer_norm_without_weights": lambda x: F.layer_norm(x, x.shape[-1:]),
    "standardized": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
    "rms_by_hand": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "over_its_largest": lambda x: x / x.abs().amax(-1, keepdim=True),
    "cumulated": lambda x: x.exp().cumsum(-1),
    "cumulated_maximum": lambda x: x.logcumsumexp(-1),
    "centred_by_median": lambda x: x - x.median(-1, keepdim=True)[0],
    "local_response": lambda x: F.local_response_norm(x.transpose(1, 2), 3).transpose(1, 2),
}
IN_PLACE = {
    "relu_": lambda x: x.relu_(),
    "add_a_number_": lambda x: x.add_(1),
    "part_plus_": lambda x: x[:, :2].add_(2.0),
    "transposed_times_": lambda x: x.transpose(0, 1).mul_(0.5),
    "first_token_set": lambda x: x[:, 0].fill_(0.3),
    "zeroed_token": lambda x: x[:, 1].zero_(),
    "copied_from_another_token": lambda x: x[:, 2].copy_(x[:, 3].clone()),
    "set_by_a_mask": lambda x: x.masked_fill_(x > 0.1, 0.7),
    "set_item": lambda x: x.__setitem__((slice(None), slice(1, 3)), 0.4),
    "set_item_by_a_mask": lambda x: x.__setitem__(x > 0.2, 0.4),
    "set_item_by_index": lambda x: x.__setitem__((slice(None), torch.tensor([1, 3])), 0.4),
    "sigmoid_of_a_part_": lambda x: x[:, 1:3].sigmoid_(),
    "exp_of_a_view_of_a_view_": lambda x: x.view(-1, x.shape[-1]).unsqueeze(0)[:, 1:].exp_(),
    "exp_of_a_chunk_": lambda x: x.chunk(2, 1)[1].exp_(),
    "plus_by_select_": lambda x: x.select(1, -1).add_(1.0),
    "index_fill_": lambda x: x.index_fill_(1, torch.tensor([0, 2]), 0.6),
    "unit_zero_": lambda x: x.t_() if x.dim() == 2 else x.transpose_(0, 1),
}

CASES = {
    **{n: ("tokens", "exact", _plain(f)) for n, f in ZERO_STAYS.items()},
    **{n: ("tokens", "renormalizes", _plain(f)) for n, f in ZERO_MOVES.items()},
    **{n: ("tokens", "any", _in_place(f)) for n, f in IN_PLACE.items()},
}
