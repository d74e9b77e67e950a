r"""Attention with dropout over packed sequences, for training on the CPU: one node of the graph for all of them.

    P_jl = softmax_l(s q_j . k_l + b_jl),    S_jl = P_jl where kept, -P_jl where dropped                      (1)
    o_j  = c sum_l max(S_jl, 0) v_l,         c = 1 / (1 - p)                                                  (2)
    dP_jl = c do_j . v_l,    D_j = do_j . o_j                                                                 (3)
    dS_jl = max(S_jl, 0) dP_jl - |S_jl| D_j                                                                   (4)
    dv_l = c sum_j max(S_jl, 0) do_j,   dq_j = s sum_l dS_jl k_l,   dk_l = s sum_j dS_jl q_j                  (5)

s is the scale, b a bias, p the rate of dropout, o the output, do its gradient. The sign of S remembers what was
dropped, so that weights and decisions are one tensor; and the sum over l of P_jl times its gradient is D_j whatever
was dropped. Sequences of neighbouring lengths share a block, padded to its longest: which ones is chosen so that

    sum over blocks of (count length^2 + COST)                                                                (6)

is least. `scaled_dot_product_attention` with dropout writes all this out on the CPU, for every length, with nodes of
the graph and casts of autocast at every step: on short texts that was as long as the matrix products of a training
step. Products, weights and sums are float32 for half precision. Second derivatives go through plain autograd.

Source: (3) and (4) are the backward pass of Dao et al., 2022, arXiv:2205.14135; the sign as a memory and (6) are ours.
Shapes: N tokens, H heads, K features of a key, V of a value, T tokens of a block's longest sequence, C its sequences,
S tokens of the longest sequence, M rows of all blocks (the sum of C H T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from danlu.nn.dropout import LOWEST, kept_scale, random_int16, threshold_int16
from danlu.nn.layout import Group

__all__ = ["packed_attention"]

COST = 1000  # what the calls for a block cost, in pairs of tokens

Groups = tuple[Group, ...]
Masks = tuple[Tensor | None, ...]


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    *,
    masks: Sequence[Tensor | None] | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attention outputs of packed sequences, eq. (2), each over its own keys.

    Args:
        query: (N, H, K) on the CPU, any float dtype.
        key: (N, H, K).
        value: (N, H, V).
        groups: runs of equally long sequences, in the order of the tokens.
        masks: one bool (count, 1, T or 1, T) or None a group, True where a query may see a key; every query sees one.
        bias: (1, H, S, S), added to the scores; None: nothing.
        causal: also hide the keys after a query in groups without a mask.
        scale: the factor of the scores, 1 / sqrt(K) or 1.
        dropout: probability of dropping an attention weight, in [0, 1), rounded to 1/65536.
        generator: where the random bits come from; None: torch's own stream.

    Returns:
        (N, H, V) in the dtype of value.

    Raises:
        ValueError: the groups do not make up N tokens, or the dropout is out of range.

    >>> x, value = torch.zeros(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    >>> packed_attention(x, x, value, [Group(1, 1), Group(1, 2)]).flatten()  # the mean of its own sequence
    tensor([1., 3., 3.])
    """
    if sum(group.count * group.length for group in groups) != len(query):
        given = ", ".join(f"{group.count} x {group.length}" for group in groups)
        raise ValueError(f"packed_attention got {len(query)} tokens and groups of {given}; give the layout's groups")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}; 0 switches it off")
    masked = masks is not None and any(mask is not None for mask in masks)
    plan = _plan(tuple(groups), query.shape[1], not masked)
    given_masks = tuple(masks) if masks is not None and masked else (None,) * len(plan.blocks)
    return _PackedAttention.apply(
        query, key, value, bias, plan, given_masks, causal, scale, threshold_int16(dropout), generator
    )


@dataclass(frozen=True)
class _Block:
    """Sequences computed together: `count` of up to `length` tokens, from row `first` of all blocks on."""

    first: int
    count: int
    length: int
    hidden: Tensor | None  # (C H, 1, T), -inf for what only fills up; None: all sequences are as long


@dataclass(frozen=True)
class _Plan:
    """Where tokens lie in the blocks: rows (M,) of (N H, K) to gather, rows (N H,) of (M, V) to take back."""

    blocks: tuple[_Block, ...]
    places: Tensor
    back: Tensor
    heads: int

    def split(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Views (C H, T, ...) of tensors (M, ...), a tuple for each block."""
        for block in self.blocks:
            last = block.first + block.count * self.heads * block.length
            yield tuple(x[block.first : last].view(-1, block.length, *x.shape[1:]) for x in tensors)

    def split_squares(self, flat: Tensor) -> Iterator[Tensor]:
        """Views (C H, T, T) of weights that lie one block after the other."""
        parts = flat.split([self.heads * block.count * block.length**2 for block in self.blocks])
        for part, block in zip(parts, self.blocks, strict=True):
            yield part.view(-1, block.length, block.length)

    def pairs(self, longest: bool = False) -> int:
        """Weights of all blocks, or of the largest."""
        sizes = [self.heads * block.count * block.length**2 for block in self.blocks]
        return max(sizes, default=0) if longest else sum(sizes)

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (M, K) in a dtype of tokens (N, H, K); what only fills up repeats a token."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.places).to(dtype)

    def spread(self, x: Tensor) -> Tensor:
        """Rows (M, K) of tokens (N, H, K), with zeros where something only fills up."""
        return x.new_zeros(len(self.places), x.shape[-1]).index_copy_(0, self.back, x.reshape(-1, x.shape[-1]))

    def take_back(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens (N, H, K) of rows (M, K)."""
        return rows.index_select(0, self.back).to(dtype).view(-1, self.heads, rows.shape[-1])


@lru_cache(maxsize=16)  # the layers of a model ask for the same one after the other
@torch.inference_mode(False)
def _plan(groups: Groups, heads: int, join: bool) -> _Plan:
    """The blocks of a layout, and where its tokens lie in them."""
    blocks: list[_Block] = []
    places = [torch.zeros(0, dtype=torch.long, device="cpu")]
    back = list(places)
    token = row = 0
    for members in _joined(groups) if join else [(group,) for group in groups]:
        lengths = torch.tensor([group.length for group in members for _ in range(group.count)], device="cpu")  # (C,)
        count, length = len(lengths), max(group.length for group in members)
        place = torch.arange(length, device="cpu")
        first = token + lengths.cumsum(0) - lengths  # (C,) each sequence's first token
        tokens = first[:, None] + torch.minimum(place, lengths[:, None] - 1)  # (C, T)
        places.append((tokens[:, None] * heads + torch.arange(heads, device="cpu")[:, None]).flatten())  # (C, H, T)
        real = place < lengths[:, None]  # (C, T)
        rows = torch.arange(row, row + count * heads * length, device="cpu").view(count, heads, length)
        back.append(rows.transpose(1, 2)[real].flatten())  # (tokens, H)
        filling = torch.zeros(count, 1, 1, length, device="cpu").masked_fill_(~real[:, None, None], -torch.inf)
        hidden = None if bool(real.all()) else filling.expand(count, heads, 1, length).flatten(0, 1)
        blocks.append(_Block(row, count, length, hidden))
        token, row = token + int(lengths.sum()), row + count * heads * length
    return _Plan(tuple(blocks), torch.cat(places), torch.cat(back), heads)


def _joined(groups: Groups) -> list[Groups]:
    """Runs of neighbouring groups whose cost, eq. (6), is least: the shortest way through all cuts."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost up to here, where the last run starts
    for end in range(1, len(groups) + 1):
        count, ways = 0, list[tuple[int, int]]()
        for start in range(end - 1, -1, -1):
            count += groups[start].count
            longest = max(group.length for group in groups[start:end])
            ways.append((best[start][0] + count * longest**2 + COST, start))
        best.append(min(ways))
    runs, end = [], len(groups)
    while end:
        runs.append(groups[best[end][1] : end])
        end = best[end][1]
    return runs[::-1]


class _PackedAttention(torch.autograd.Function):
    """Eqs. (1) and (2), and behind them (3) to (5)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, plan: _Plan, masks: Masks,
        causal: bool, scale: float, threshold: int, generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            q, k, v = _rows(query, key, value, plan)  # (M, K), (M, K), (M, V)
            signed, output, work = q.new_empty(plan.pairs()), v.new_empty(v.shape), q.new_empty(plan.pairs(True))
            drops = threshold > LOWEST
            noise = random_int16(len(signed), generator) if drops else signed
            below = torch.tensor(float(threshold), device="cpu")
            squares = zip(plan.split_squares(signed), plan.split_squares(noise), strict=True)
            parts = zip(plan.blocks, masks, plan.split(q, k, v, output), squares, strict=True)
            for block, mask, (q_part, k_part, v_part, out), (weights, random) in parts:
                room = work[: weights.numel()].view(weights.shape)
                torch.softmax(_scores(room, q_part, k_part, block, bias, mask, causal, scale), -1, out=weights)
                kept = weights
                if drops:  # eq. (1): negative where the random number lies below the threshold
                    weights.copysign_(torch.sub(random, below, out=room))
                    kept = torch.clamp_min(weights, 0, out=room)
                _product(out, kept, v_part, kept_scale(threshold))  # eq. (2)
            result = plan.take_back(output, value.dtype)
        ctx.save_for_backward(query, key, value, bias, signed, result)
        ctx.given = plan, masks, causal, scale, threshold
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, bias, signed, result = ctx.saved_tensors
        plan, _, _, scale, threshold = ctx.given
        grad, c = grads[0], kept_scale(threshold)
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
                return *_through_autograd(query, key, value, bias, signed, grad, *ctx.given), *[None] * 6
            q, k, v = _rows(query, key, value, plan)
            do = plan.spread(grad.to(q.dtype))  # (M, V)
            towards = plan.spread((grad.to(q.dtype) * result).sum(-1, keepdim=True))  # D (M, 1)  eq. (3)
            dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
            work = q.new_empty(2, plan.pairs(True))
            d_bias = torch.zeros_like(bias, dtype=q.dtype) if bias is not None and ctx.needs_input_grad[3] else None
            rows = plan.split(q, k, v, do, towards, dq, dk, dv)
            for block, weights, (q_part, k_part, v_part, do_part, d, dq_part, dk_part, dv_part) in zip(
                plan.blocks, plan.split_squares(signed), rows, strict=True
            ):
                room, d_scores = work[:, : weights.numel()].view(2, *weights.shape)
                kept = torch.clamp_min(weights, 0, out=room)
                _product(dv_part, kept.mT, do_part, c)  # eq. (5)
                _product(d_scores, do_part, v_part.mT, c).mul_(kept)  # eq. (3)
                d_scores.addcmul_(torch.abs(weights, out=room), d, value=-1)  # eq. (4)
                _product(dq_part, d_scores, k_part, scale)  # eq. (5)
                _product(dk_part, d_scores.mT, q_part, scale)
                if d_bias is not None:
                    square = d_scores.view(block.count, plan.heads, block.length, block.length)
                    d_bias[:, :, : block.length, : block.length] += square.sum(0)
            return (
                plan.take_back(dq, query.dtype), plan.take_back(dk, key.dtype), plan.take_back(dv, value.dtype),
                None if bias is None or d_bias is None else d_bias.to(bias.dtype), *[None] * 6,
            )  # fmt: skip


def _rows(query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in blocks, in the dtype of the sums."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, value.dtype), torch.float32)
    return plan.gather(query, dtype), plan.gather(key, dtype), plan.gather(value, dtype)


def _scores(
    room: Tensor, q: Tensor, k: Tensor, block: _Block, bias: Tensor | None, mask: Tensor | None, causal: bool,
    scale: float,
) -> Tensor:  # fmt: skip
    """What the softmax of eq. (1) is taken of, (C H, T, T), in the memory given."""
    if block.hidden is None or causal:  # no query that counts sees what only fills up behind it
        _product(room, q, k.mT, scale)
    else:
        torch.baddbmm(block.hidden.to(q.dtype), q, k.mT, alpha=scale, out=room)
    return _restrict(room, block, bias, mask, causal)


def _restrict(scores: Tensor, block: _Block, bias: Tensor | None, mask: Tensor | None, causal: bool) -> Tensor:
    """Scores (C H, T, T) with the bias added and without what a query may not see, in place."""
    length = block.length
    square = scores.view(block.count, -1, length, length)
    if bias is not None:
        square += bias[:, :, :length, :length]
    if mask is not None:
        square.masked_fill_(~mask, -torch.inf)
    elif causal:
        square.masked_fill_(torch.ones(length, length, dtype=torch.bool, device=scores.device).triu_(1), -torch.inf)
    return scores


def _product(out: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor a b, written to `out`, whose contents do not matter."""
    return out.baddbmm_(a, b, beta=0, alpha=factor)


def _through_autograd(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, signed: Tensor, grad: Tensor, plan: _Plan,
    masks: Masks, causal: bool, scale: float, threshold: int,
) -> Iterator[Tensor | None]:  # fmt: skip
    """Gradients that can be differentiated: of eqs. (1) and (2) in plain torch, with the decisions taken before."""
    q, k, v = _rows(query, key, value, plan)
    outputs = []
    parts = zip(plan.blocks, masks, plan.split(q, k, v), plan.split_squares(signed), strict=True)
    for block, mask, (q_part, k_part, v_part), weights in parts:
        scores = scale * q_part @ k_part.mT
        if block.hidden is not None and not causal:
            scores = scores + block.hidden.to(q.dtype)
        kept = _restrict(scores, block, bias, mask, causal).softmax(-1) * ~weights.signbit()
        outputs.append((kept_scale(threshold) * kept @ v_part).flatten(0, 1))
    output = plan.take_back(torch.cat(outputs), value.dtype)
    given = (query, key, value, bias)
    wanted = [x for x in given if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return (next(found) if x is not None and x.requires_grad else None for x in given)
