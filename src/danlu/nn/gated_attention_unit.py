r"""The gated attention unit: attention of one head and a gate in one layer, instead of attention and feed-forward.

    [u, v, z] = act(W_i x),    q = z * gamma_q,    k = z * gamma_k                                             (1)
    o = W_o (u * sum_l A_jl v_l)                                                                               (2)
    softmax_plus    A_jl = softmax_l(log(max(n_j, 16)) / log(512) * q_j . k_l / sqrt(K))                       (3)
    squared_relu    A_jl = relu(q_j . k_l / sqrt(K))^2 / n_j                                                   (4)

n_j counts the keys that query j may see: (3) keeps the entropy of the weights as sequences grow, with 512 as the
length where nothing changes and none below 16.

Source: Hua et al., 2022, arXiv:2202.10447, (1), (2), (4); Su, kexue.fm/archives/8934 and, for (3),
kexue.fm/archives/8823; GAU-alpha is kexue.fm/archives/9052.
Shapes: N tokens, D features, F features inside, K features of queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.math.activations import activation as activation_of
from danlu.math.attention_normalize import softmax_plus_scale
from danlu.nn.attention import AttentionContext, attend, causal_mask, over_batch
from danlu.nn.positions import apply_rotary

__all__ = ["GatedAttentionUnit"]

NORMALIZATIONS = ("softmax_plus", "softmax", "squared_relu")


class GatedAttentionUnit(nn.Module):
    """Eqs. (1) and (2) over the sequences of a layout; `input`, `output` and the two scales are its parameters.

    Source: see the module. Shapes: see the module.
    """

    def __init__(
        self,
        dim: int,
        inner_dim: int,
        key_dim: int = 128,
        *,
        activation: str = "silu",
        bias: bool = False,
        normalization: str = "softmax_plus",
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}")
        self.inner_dim, self.key_dim, self.normalization = inner_dim, key_dim, normalization
        self.input = nn.Linear(dim, 2 * inner_dim + key_dim, bias=bias)
        self.output = nn.Linear(inner_dim, dim, bias=bias)
        self.query_scale = nn.Parameter(torch.ones(key_dim))
        self.key_scale = nn.Parameter(torch.ones(key_dim))
        self.query_shift = nn.Parameter(torch.zeros(key_dim)) if bias else None
        self.key_shift = nn.Parameter(torch.zeros(key_dim)) if bias else None
        self.activation = activation_of(activation)

    def forward(self, x: Tensor, context: AttentionContext | Tensor | None = None, layer: int = 0) -> Tensor:
        """Outputs for tokens (N, D) in a context, or for a batch (B, T, D) with a mask (B, T), True for tokens."""
        if not isinstance(context, AttentionContext):
            return over_batch(self, x, context)
        gate, value, shared = self.activation(self.input(x)).split([self.inner_dim, self.inner_dim, self.key_dim], -1)
        query, key = shared * self.query_scale, shared * self.key_scale  # (N, K)  eq. (1)
        if self.query_shift is not None and self.key_shift is not None:
            query, key = query + self.query_shift, key + self.key_shift
        if context.rotary is not None:
            query, key = apply_rotary(query, *context.rotary), apply_rotary(key, *context.rotary)
        if context.cache is not None:
            return self.output(gate * self._cached(query, key, value, context, layer))
        outputs = []
        groups = zip(*(context.layout.split(part) for part in (query, key, value)), context.masks(), strict=True)
        for q, k, v, mask in groups:
            if context.causal and mask is None:
                mask = causal_mask(q.shape[1], q.shape[1], q.device)[None, None]
            outputs.append(self._over(q[:, None], k[:, None], v[:, None], mask, context.dropout)[:, 0])
        return self.output(gate * context.layout.join(outputs))  # eq. (2)

    def _over(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
        """Outputs (B, 1, T, F) of queries (B, 1, T, K) over keys (B, 1, S, K); mask broadcastable to (B, 1, T, S)."""
        if mask is None:
            seen = torch.tensor(float(key.shape[2]), device=query.device)
        else:  # apart, because float() would fix the length in an exported graph
            seen = mask.sum(-1, keepdim=True).float()  # (B or 1, 1, T or 1, 1)
        scale = self.key_dim**-0.5
        if self.normalization == "squared_relu":
            scores = (query @ key.mT * scale).relu().square()
            scores = scores if mask is None else scores.masked_fill(~mask, 0.0)
            return (scores / seen.to(scores.dtype)) @ value  # eq. (4)
        if self.normalization == "softmax_plus":
            query = query * softmax_plus_scale(seen).to(query.dtype)  # eq. (3)
        return attend(query, key, value, mask=mask, scale=scale, dropout=dropout)[0]

    def _cached(self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, layer: int) -> Tensor:
        keys, values, mask = context.remember(layer, key[:, None], value[:, None])
        output = self._over(
            query.unflatten(0, context.layout.shape)[:, None], keys.transpose(1, 2), values.transpose(1, 2), mask
        )
        return output[:, 0].flatten(0, 1)
