r"""Nyström attention as a layer, in the place of torch's own.

    output = W_o (nystrom(W_q x, W_k x, W_v x) + conv(W_v x))                                                  (1)

The convolution, one filter a head along the tokens, is the paper's skip; it is optional, and padding adds nothing.

Source: Xiong et al., 2021, arXiv:2102.03902; kexue.fm/archives/8180.
Shapes: B sequences, T queries, S keys, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.nystrom import check_settings, nystrom_attention

__all__ = ["NystromAttention"]


class NystromAttention(nn.Module):
    """Eq. (1) in the place of `nn.MultiheadAttention(batch_first=True)`, whose parameter names and call it has.

    `key_padding_mask` is torch's, True (or -inf) where a key is padding; `mask` is ours, True for tokens. There are no
    weights to return: the second output is None. With a convolution, a filter of `conv_kernel_size` places a head runs
    over the values and is added to the heads, as in the paper. Masks of pairs and causal use are refused.
    Source: see the module. Shapes: (B, T, D).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_landmarks: int = 64,
        conv_kernel_size: int | None = 33,
        *,
        mode: str = "nystrom",
        pinv: int | float | str = "auto",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        if conv_kernel_size is not None and (conv_kernel_size < 1 or conv_kernel_size % 2 == 0):
            raise ValueError(f"conv_kernel_size must be odd, so that lengths stay, or None; got {conv_kernel_size}")
        check_settings(num_landmarks, mode, pinv)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.num_landmarks, self.mode, self.pinv = num_landmarks, mode, pinv
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.conv: nn.Conv2d | None = None
        if conv_kernel_size is not None:
            size, around = (conv_kernel_size, 1), (conv_kernel_size // 2, 0)
            self.conv = nn.Conv2d(num_heads, num_heads, size, padding=around, bias=False, groups=num_heads)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        self.batch_first = True
        self._qkv_same_embed_dim = False  # or nn.TransformerEncoderLayer computes softmax attention on its fast path

    @classmethod
    def from_attention(
        cls, attention: nn.MultiheadAttention, num_landmarks: int = 64, conv_kernel_size: int | None = None
    ) -> NystromAttention:
        """The layer with the weights of a trained one, to be fine-tuned or used as it is.

        Args:
            attention: with batch_first=True, one size of queries, keys and values, no bias_k and no zero attention;
                its dropout is not taken over.
            num_landmarks: m.
            conv_kernel_size: of a convolution that starts at zero; None: none.

        Returns:
            A new layer on the same device, in the same dtype and mode.

        Raises:
            ValueError: an attention of another kind.

        >>> NystromAttention.from_attention(nn.MultiheadAttention(4, 2, batch_first=True), 8).num_landmarks
        8
        """
        weight = attention.in_proj_weight
        if not attention.batch_first or weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "from_attention needs nn.MultiheadAttention(batch_first=True) with keys and values of embed_dim, "
                "without add_bias_kv and add_zero_attn"
            )
        bias = attention.in_proj_bias is not None
        layer = cls(attention.embed_dim, attention.num_heads, num_landmarks, conv_kernel_size, bias=bias)
        layer = layer.to(weight.device, weight.dtype)
        if layer.conv is not None:
            nn.init.zeros_(layer.conv.weight)
        layer.load_state_dict(attention.state_dict(), strict=layer.conv is None)
        return layer.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if attn_mask is not None:
            raise ValueError("NystromAttention forms no pairs that attn_mask could hide; use softmax attention for it")
        key = query if key is None else key
        value = key if value is None else value
        if query.ndim != 3 or key.ndim != 3 or key.shape[:2] != value.shape[:2]:
            shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
            raise ValueError(f"NystromAttention needs query (B, T, D), key and value (B, S, D); got {shapes}")
        keep = _keep(key_padding_mask, mask)
        own = query is key
        if self.conv is not None and not own:
            raise ValueError("the convolution belongs to self-attention; build with conv_kernel_size=None for another")
        q, k, v = self.project(query, key, value)
        query_mask = keep if own or keep is None else keep.new_ones(query.shape[:2])
        output = nystrom_attention(
            q, k, v, self.num_landmarks, mask=keep, query_mask=query_mask, mode=self.mode, pinv=self.pinv,
            causal=is_causal,
        )  # fmt: skip
        if self.conv is not None:
            v = v if keep is None else v.masked_fill(~keep[:, None, :, None], 0.0)
            skip = self.conv(v)
            output = output + (skip if keep is None else skip.masked_fill(~keep[:, None, :, None], 0.0))
        return self.out_proj(output.transpose(1, 2).flatten(2)), None

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, T or S, D / H) of hidden states (B, T or S, D)."""
        if query is key and key is value:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = self.in_proj_weight.chunk(3)
            biases: tuple[Tensor | None, ...] = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            parts = tuple(map(F.linear, (query, key, value), weights, biases))
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        return q, k, v


def _keep(key_padding_mask: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """True for tokens, from torch's mask or ours."""
    if key_padding_mask is None:
        return mask
    if mask is not None:
        raise ValueError("give mask (True for tokens) or torch's key_padding_mask (True for padding), not both")
    if key_padding_mask.dtype == torch.bool:
        return ~key_padding_mask
    keep = key_padding_mask == 0
    if not key_padding_mask.is_floating_point() or not bool((keep | key_padding_mask.isneginf()).all()):
        raise ValueError("key_padding_mask must be bool, True for padding, or floats of 0 and -inf; got other values")
    return keep
