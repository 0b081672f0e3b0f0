"""Mixtures of experts by hand, in the styles of public implementations: how tokens are dispatched to experts differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, INNER, EXPERTS, TOKENS, CHOSEN = 8, 6, 6, 24, 2


class Mixture(nn.Module):
    """A gate and two matrices per expert; `dispatch(model, x [tokens, width], logits [tokens, experts])` does the rest."""

    def __init__(self, dispatch: Callable[..., Tensor], stacked: bool) -> None:
        super().__init__()
        self.dispatch, self.experts_number, self.k = dispatch, EXPERTS, CHOSEN
        self.gate = nn.Linear(WIDTH, EXPERTS)
        if stacked:
            self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
            self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        else:
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
            )
        if dispatch is corrected_bias:
            self.register_buffer("bias", torch.linspace(-0.02, 0.02, EXPERTS))

    def run_expert(self, x: Tensor, e: int) -> Tensor:
        """Rows [n, width] through the stacked expert `e`."""
        return F.gelu(x @ self.up[e]) @ self.down[e]

    def run_all(self, x: Tensor) -> Tensor:
        """Rows [experts, n, width], each through its stacked expert."""
        return F.gelu(x @ self.up) @ self.down

    def forward(self, x: Tensor) -> Tensor:
        return self.dispatch(self, x, self.gate(x))


def _top(m: Mixture, logits: Tensor) -> tuple[Tensor, Tensor]:
    weight, chosen = logits.softmax(-1).topk(m.k, -1)
    return weight / weight.sum(-1, keepdim=True), chosen


# Experts in a ModuleList


def loop_over_one_hot(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Mixtral's first implementation: a mask per expert, a loop over all of them."""
    weight, chosen = _top(m, logits)
    mask = F.one_hot(chosen, num_classes=m.experts_number).permute(2, 1, 0)
    out = torch.zeros_like(x)
    for e, expert in enumerate(m.experts):
        slot, token = torch.where(mask[e])
        out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
    return out


def loop_over_hit_experts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """The experts that any token hit, found by nonzero."""
    weight, chosen = _top(m, logits)
    mask = F.one_hot(chosen, num_classes=m.experts_number).permute(2, 1, 0)
    out = torch.zeros_like(x)
    for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        slot, token = torch.where(mask[e].squeeze(0))
        out.index_add_(0, token, m.experts[int(e)](x[token]) * weight[token, slot, None])
    return out


def experts_by_name(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """The experts that any token hit, looked up by a text that has their number, as in a ModuleDict."""
    weight, chosen = _top(m, logits)
    mask = F.one_hot(chosen, num_classes=m.experts_number).permute(2, 1, 0)
    out = torch.zeros_like(x)
    for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        slot, token = torch.where(mask[e].squeeze(0))
        out.index_add_(0, token, m.experts.get_submodule(f"{e[0]}")(x[token]) * weight[token, slot, None])
    return out


def loop_over_unique(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    out = torch.zeros_like(x)
    for e in chosen.unique().tolist():
        token, slot = torch.where(chosen == e)
        out.index_add_(0, token, m.experts[e](x[token]) * weight[token, slot, None])
    return out


def loop_with_equal(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Switch: the best expert alone; each expert compares the indices with its own."""
    weight, chosen = logits.softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for e in range(m.experts_number):
        hit = chosen == e
        out[hit] = m.experts[e](x[hit]) * weight[hit, None]
    return out


def _from_counts(m: Mixture, x: Tensor, weight: Tensor, chosen: Tensor, counts: list[int]) -> Tensor:
    order, start, out = chosen.flatten().argsort(), 0, torch.zeros_like(x)
    for e, n in enumerate(counts):
        at = order[start : start + n]
        out.index_add_(0, at // m.k, m.experts[e](x[at // m.k]) * weight.flatten()[at][:, None])
        start += n
    return out


def bincount_list(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    return _from_counts(m, x, weight, chosen, chosen.flatten().bincount(minlength=m.experts_number).tolist())


def bincount_numpy(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """DeepSeek's inference code: cumulative counts as a NumPy array."""
    weight, chosen = _top(m, logits)
    ends = chosen.flatten().bincount(minlength=m.experts_number).cumsum(0).cpu().numpy()
    order, start, out = chosen.flatten().argsort(), 0, torch.zeros_like(x)
    for e, end in enumerate(ends):
        at = order[start:end]
        out.index_add_(0, at // m.k, m.experts[e](x[at // m.k]) * weight.flatten()[at][:, None])
        start = end
    return out


def bincount_items(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    counts = chosen.flatten().bincount(minlength=m.experts_number)
    return _from_counts(m, x, weight, chosen, [int(counts[e]) for e in range(m.experts_number)])


def bincount_iterated(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    return _from_counts(m, x, weight, chosen, [int(n) for n in chosen.flatten().bincount(minlength=m.experts_number)])


def histogram_split(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Sorted rows, split by how many each expert has."""
    weight, chosen = _top(m, logits)
    counts = torch.histc(chosen.float(), bins=m.experts_number, min=0, max=m.experts_number - 1).long()
    order = chosen.flatten().sort(stable=True)[1]
    rows = x[order // m.k].split(counts.tolist())
    done = torch.cat([m.experts[e](r) for e, r in enumerate(rows)]) * weight.flatten()[order][:, None]
    return torch.zeros_like(x).index_add_(0, order // m.k, done)


def one_hot_counts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    counts = F.one_hot(chosen.flatten(), m.experts_number).sum(0)
    return _from_counts(m, x, weight, chosen, counts.tolist())


def scattered_counts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """DeepSeek: counts by scatter into zeros of [tokens, experts]."""
    weight, chosen = _top(m, logits)
    hit = chosen.new_zeros((len(x), m.experts_number)).scatter_(1, chosen, 1)
    return _from_counts(m, x, weight, chosen, hit.sum(0).tolist())


def scatter_added_counts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    flat = chosen.flatten()
    counts = torch.zeros(m.experts_number, dtype=torch.long).scatter_add_(0, flat, torch.ones_like(flat))
    return _from_counts(m, x, weight, chosen, counts.tolist())


def sums_of_comparisons(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Counts as sums of comparisons with `arange`."""
    weight, chosen = _top(m, logits)
    counts = (chosen.flatten()[:, None] == torch.arange(m.experts_number)).sum(0)
    return _from_counts(m, x, weight, chosen, counts.tolist())


def searched_ends(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Where each expert's rows end among the sorted ones, by searchsorted."""
    weight, chosen = _top(m, logits)
    ordered, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(m.experts_number), right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    out, start = torch.zeros_like(x), 0
    for e, n in enumerate(counts):
        at = order[start : start + n]
        out.index_add_(0, at // m.k, m.experts[e](x[at // m.k]) * weight.flatten()[at][:, None])
        start += n
    return out


def consecutive_runs(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    ordered, order = chosen.flatten().sort(stable=True)
    which, counts = torch.unique_consecutive(ordered, return_counts=True)
    out, start = torch.zeros_like(x), 0
    for e, n in zip(which.tolist(), counts.tolist(), strict=True):
        at = order[start : start + n]
        out.index_add_(0, at // m.k, m.experts[e](x[at // m.k]) * weight.flatten()[at][:, None])
        start += n
    return out


def dense_gate_columns(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Tutel and V-MoE in small: the gate's weights scattered over all experts, a column for each."""
    weight, chosen = _top(m, logits)
    gates = torch.zeros_like(logits).scatter(1, chosen, weight)
    return sum(gates[:, e, None] * expert(x) for e, expert in enumerate(m.experts))


def stacked_outputs(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """All experts on all tokens, the chosen outputs gathered."""
    weight, chosen = _top(m, logits)
    all_outputs = torch.stack([expert(x) for expert in m.experts], 1)
    picked = all_outputs.gather(1, chosen[:, :, None].expand(-1, -1, WIDTH))
    return (picked * weight[:, :, None]).sum(1)


def token_by_token(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    rows = [sum(weight[t, s] * m.experts[int(chosen[t, s])](x[t]) for s in range(m.k)) for t in range(len(x))]
    return torch.stack(rows)


def sorted_gate(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """The best experts by a full sort of the gate, not by topk."""
    weight, chosen = logits.softmax(-1).sort(-1, descending=True)
    weight, chosen = weight[:, : m.k], chosen[:, : m.k]
    out = torch.zeros_like(x)
    for e, expert in enumerate(m.experts):
        token, slot = torch.where(chosen == e)
        out.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
    return out


def argsorted_gate(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    chosen = logits.argsort(-1, descending=True)[:, : m.k]
    weight = logits.gather(1, chosen).softmax(-1)
    return _from_counts(m, x, weight, chosen, chosen.flatten().bincount(minlength=m.experts_number).tolist())


def numpy_array_of_counts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    counts = np.asarray(chosen.flatten().bincount(minlength=m.experts_number))
    return _from_counts(m, x, weight, chosen, [int(n) for n in counts])


def split_at_ends(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Sorted rows, split at cumulative counts that stay in a tensor."""
    weight, chosen = _top(m, logits)
    order = chosen.flatten().argsort(stable=True)
    ends = chosen.flatten().bincount(minlength=m.experts_number).cumsum(0)[:-1]
    parts = torch.tensor_split(x[order // m.k], ends)
    done = torch.cat([m.experts[e](rows) for e, rows in enumerate(parts)]) * weight.flatten()[order][:, None]
    return torch.zeros_like(x).index_add_(0, order // m.k, done)


# Experts in stacked parameters


def gshard_capacity(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """GShard: positions in an expert's buffer by cumsum over tokens, dispatch and combine tensors, einsum."""
    probability = logits.softmax(-1)
    weight, chosen = probability.max(-1)
    mask = F.one_hot(chosen, m.experts_number)
    capacity = 5
    place = (mask.cumsum(0) - 1) * mask
    fits = mask * (place < capacity)
    buffer = F.one_hot((place * mask).sum(-1), TOKENS)[:, :capacity]
    combine = torch.einsum("b,be,bc->bec", weight, fits.to(x.dtype), buffer.to(x.dtype))
    sent = torch.einsum("bec,bd->ecd", (combine > 0).to(x.dtype), x)
    return torch.einsum("bec,ecd->bd", combine, m.run_all(sent))


def grouped_by_offsets(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """MegaBlocks and transformers: rows sorted by expert, ends by cumsum of a histogram, one matmul per segment."""
    weight, chosen = _top(m, logits)
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    rows = x[order // m.k]
    ends = torch.histc(flat.float(), bins=m.experts_number, min=0, max=m.experts_number - 1).cumsum(0).to(torch.int32)
    owner = (torch.arange(len(rows))[:, None] >= ends[None, :]).sum(-1)
    done = torch.bmm(F.gelu(torch.bmm(rows[:, None], m.up[owner])), m.down[owner])[:, 0]
    return torch.zeros_like(x).index_add_(0, order // m.k, done * weight.flatten()[order][:, None])


def picked_matrices(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    inner = F.gelu(torch.einsum("bd,bkdh->bkh", x, m.up[chosen]))
    return torch.einsum("bkh,bkhd,bk->bd", inner, m.down[chosen], weight)


def selected_matrices(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = logits.softmax(-1).max(-1)
    up, down = m.up.index_select(0, chosen), m.down.index_select(0, chosen)
    return (F.gelu(x[:, None] @ up) @ down)[:, 0] * weight[:, None]


def loop_over_stack(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """transformers' eager experts: those that any token hit, each by its slice of the stack."""
    weight, chosen = _top(m, logits)
    mask = F.one_hot(chosen, num_classes=m.experts_number).permute(2, 1, 0)
    out = torch.zeros_like(x)
    for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        slot, token = torch.where(mask[e[0]])
        out.index_add_(0, token, m.run_expert(x[token], e[0]) * weight[token, slot, None])
    return out


def range_over_stack(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    out = torch.zeros_like(x)
    for e in range(m.up.shape[0]):
        token, slot = torch.where(chosen == e)
        out.index_add_(0, token, m.run_expert(x[token], e) * weight[token, slot, None])
    return out


def counts_over_stack(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    order, start, out = chosen.flatten().argsort(), 0, torch.zeros_like(x)
    for e, n in enumerate(chosen.flatten().bincount(minlength=m.experts_number).tolist()):
        at = order[start : start + n]
        out.index_add_(0, at // m.k, m.run_expert(x[at // m.k], e) * weight.flatten()[at][:, None])
        start += n
    return out


def padded_capacity(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Rows scattered into [experts * capacity] slots by flat index, as Tutel and Fairseq do."""
    weight, chosen = logits.softmax(-1).max(-1)
    mask = F.one_hot(chosen, m.experts_number)
    place = (mask.cumsum(0) * mask).sum(-1) - 1
    slots = x.new_zeros(m.experts_number * TOKENS, WIDTH).index_copy(0, chosen * TOKENS + place, x)
    done = m.run_all(slots.view(m.experts_number, TOKENS, WIDTH)).flatten(0, 1)
    return done[chosen * TOKENS + place] * weight[:, None]


def two_index_capacity(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """The same with an index of the expert and one of the slot."""
    weight, chosen = logits.softmax(-1).max(-1)
    mask = F.one_hot(chosen, m.experts_number)
    place = (mask.cumsum(0) * mask).sum(-1) - 1
    slots = x.new_zeros(m.experts_number, TOKENS, WIDTH)
    slots[chosen, place] = x
    return m.run_all(slots)[chosen, place] * weight[:, None]


def ranked_within_expert(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Places within an expert from sorted indices and first positions of each expert, by a gather of starts."""
    weight, chosen = logits.softmax(-1).max(-1)
    counts = chosen.bincount(minlength=m.experts_number)
    starts = counts.cumsum(0) - counts
    ordered, order = chosen.sort(stable=True)
    place = torch.arange(len(x)) - starts[ordered]
    slots = x.new_zeros(m.experts_number, TOKENS, WIDTH)
    slots[ordered, place] = x[order]
    done = m.run_all(slots)[ordered, place]
    return torch.zeros_like(x).index_copy(0, order, done) * weight[:, None]


def soft_slots(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Soft MoE: every expert gets a weighted mean of all tokens."""
    sent = torch.einsum("be,bd->ed", logits.softmax(0), x)
    return logits.softmax(1) @ m.run_all(sent[:, None])[:, 0]


def expert_choice(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Each expert chooses its tokens."""
    weight, token = logits.softmax(-1).t().topk(5, -1)
    done = m.run_all(x[token]) * weight[:, :, None]
    return torch.zeros_like(x).index_add(0, token.flatten(), done.flatten(0, 1))


def corrected_bias(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """DeepSeek-V3: sigmoid scores, a bias per expert that only the choice sees."""
    scores = logits.sigmoid()
    chosen = (scores + m.bias).topk(m.k, -1)[1]
    weight = scores.gather(1, chosen)
    inner = F.gelu(torch.einsum("bd,bkdh->bkh", x, m.up[chosen]))
    return torch.einsum("bkh,bkhd,bk->bd", inner, m.down[chosen], weight)


def noisy_threshold(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Experts whose logit is among the best, by comparison with the k-th best value."""
    least = logits.topk(m.k, -1)[0][:, -1:]
    gates = logits.masked_fill(logits < least, float("-inf")).softmax(-1)
    return torch.einsum("be,ebd->bd", gates, m.run_all(x.expand(m.up.shape[0], -1, -1)))


def balanced_loss(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Switch's load balance: the share of tokens times the mean probability, over all experts."""
    probability = logits.softmax(-1)
    weight, chosen = probability.max(-1)
    share = F.one_hot(chosen, m.experts_number).to(x.dtype).mean(0)
    loss = (share * probability.mean(0)).sum()
    inner = F.gelu(torch.einsum("bd,bdh->bh", x, m.up[chosen]))
    return torch.einsum("bh,bhd->bd", inner, m.down[chosen]) * weight[:, None] + loss


def parity_of_index(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Arithmetic on the index: which of two devices an expert is on."""
    weight, chosen = logits.softmax(-1).max(-1)
    inner = F.gelu(torch.einsum("bd,bdh->bh", x, m.up[chosen]))
    return torch.einsum("bh,bhd->bd", inner, m.down[chosen]) * (weight * (1 + chosen % 2))[:, None]


def mixture_of_depths(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """Only the best tokens go through the experts, the others around them."""
    best, token = logits.max(-1)[0].topk(10)
    inner = m.run_all(x[token].expand(m.up.shape[0], -1, -1))
    return x.index_add(0, token, torch.einsum("be,ebd->bd", logits[token].softmax(-1), inner) * best.sigmoid()[:, None])


def _by_owner(m: Mixture, x: Tensor, logits: Tensor, owners: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Rows sorted by expert; `owners(counts [experts], positions [rows])` gives the expert of each."""
    weight, chosen = _top(m, logits)
    order = chosen.flatten().argsort(stable=True)
    owner = owners(chosen.flatten().bincount(minlength=m.experts_number), torch.arange(len(order)))
    rows = x[order // m.k]
    done = torch.bmm(F.gelu(torch.bmm(rows[:, None], m.up[owner])), m.down[owner])[:, 0]
    return torch.zeros_like(x).index_add_(0, order // m.k, done * weight.flatten()[order][:, None])


def bucketized(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    return _by_owner(m, x, logits, lambda counts, rows: torch.bucketize(rows, counts.cumsum(0), right=True))


def repeated_by_counts(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    return _by_owner(m, x, logits, lambda counts, rows: torch.repeat_interleave(counts))


def written_to_out(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    """topk into tensors that were made before."""
    weight, chosen = x.new_empty(len(x), m.k), torch.empty(len(x), m.k, dtype=torch.long)
    torch.topk(logits.softmax(-1), m.k, -1, out=(weight, chosen))
    inner = F.gelu(torch.einsum("bd,bkdh->bkh", x, m.up[chosen]))
    return torch.einsum("bkh,bkhd,bk->bd", inner, m.down[chosen], weight)


def clamped_in_place(m: Mixture, x: Tensor, logits: Tensor) -> Tensor:
    weight, chosen = _top(m, logits)
    chosen = chosen.clone()
    chosen.clamp_(0, m.experts_number - 1)
    inner = F.gelu(torch.einsum("bd,bkdh->bkh", x, m.up[chosen]))
    return torch.einsum("bkh,bkhd,bk->bd", inner, m.down[chosen], weight)


LISTED = (
    loop_over_one_hot, loop_over_hit_experts, loop_over_unique, loop_with_equal, bincount_list, bincount_numpy, bincount_items,
    bincount_iterated, histogram_split, one_hot_counts, scattered_counts, scatter_added_counts, sums_of_comparisons,
    searched_ends, consecutive_runs, dense_gate_columns, stacked_outputs, token_by_token, sorted_gate, argsorted_gate,
    numpy_array_of_counts, split_at_ends, experts_by_name,
)  # fmt: skip
STACKED = (
    gshard_capacity, grouped_by_offsets, picked_matrices, selected_matrices, loop_over_stack, range_over_stack,
    counts_over_stack, padded_capacity, two_index_capacity, ranked_within_expert, soft_slots, expert_choice, corrected_bias,
    noisy_threshold, balanced_loss, parity_of_index, mixture_of_depths,
    bucketized, repeated_by_counts, written_to_out, clamped_in_place,
)  # fmt: skip
ROUTERS = {f.__name__: f for f in (*LISTED, *STACKED)}


def mixture(name: str, seed: int = 0) -> tuple[Mixture, Tensor]:
    """Return the mixture of experts `name` in float64, and its input."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Mixture(ROUTERS[name], ROUTERS[name] in STACKED).double().eval()
        return model, torch.randn(TOKENS, WIDTH, dtype=torch.float64)
