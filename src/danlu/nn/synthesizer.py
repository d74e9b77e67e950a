r"""Synthesizer: self-attention whose scores need no comparison of tokens.

    O = softmax(S) V,    heads side by side, then W_o                                                         (1)
    V = X W_v,           S: one kind of `danlu.nn.synthetic_scores`, or a mixture of several                  (2)

Keys that a mask drops get weight 0. A query that may see no key gets weights 0, not nan, and its output is the bias of
W_o. Scores of "random" and "factorized_random" know nothing of the tokens: without padding one softmax serves the whole
batch, and (1) is one product. Without a causal mask no kind is causal: the values are not.

What an encoder needs to know: `SynthesizerAttention(dim, heads, mode, max_len)` maps (B, T, D) and a mask (B, T), True
for tokens, to (B, T, D), as `danlu.nn.MultiHeadAttention` does; `value` and `output` carry its names, and so do `query`
and `key` in `parts.vanilla`. Sequences have at most max_len tokens, and places are counted from the left of the row.
Attention to another sequence is not offered: the paper could not replace it.

Relatives: "random" without softmax is the token mixing of MLP-Mixer (up to a transpose and its hidden layer), with the
table of a Fourier transform FNet, with a table that depends on j - i alone a relative position bias.

Source: Tay et al., 2020, arXiv:2005.00743; kexue.fm/archives/7430.
Shapes: B sequences, T tokens, H heads, D features, V features of a head's values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.attention import causal_mask
from danlu.nn.synthetic_layers import (
    DenseScores,
    DotProductScores,
    FactorizedDenseScores,
    FactorizedRandomScores,
    RandomScores,
)
from danlu.nn.synthetic_scores import mix_scores

__all__ = ["SYNTHESIZER_MODES", "SynthesizerAttention", "synthesizer_attention", "synthesizer_weights"]

SYNTHESIZER_MODES = ("dense", "random", "fixed_random", "factorized_dense", "factorized_random", "vanilla")


def synthesizer_weights(scores: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """The weights softmax(S) of eq. (1), over the keys that may be seen.

    Args:
        scores: (B, H, T, T), or (1, H, T, T) for scores that all sequences share; any float dtype.
        mask: bool, broadcastable to (B, H, T, T), True = keep; None keeps all.
        causal: also hide the keys after a query.

    Returns:
        (B, H, T, T), or (1, H, T, T) where neither scores nor mask tell sequences apart, in the dtype of the scores;
        softmax is taken in float32 or better. A query without keys has weights 0.

    Raises:
        ValueError: scores are not (B, H, T, T), or the mask is not bool or does not fit.

    >>> synthesizer_weights(torch.zeros(1, 1, 2, 2), causal=True)
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    if scores.ndim != 4:
        raise ValueError(f"scores must be (batch or 1, heads, tokens, tokens), got {tuple(scores.shape)}")
    keep = _keep(scores, mask, causal, None if len(scores) == 1 else len(scores))
    weights = _softmax(scores, keep)
    if keep is not None:
        weights = weights.masked_fill(~keep.any(-1, keepdim=True), 0)
    return weights


def synthesizer_attention(
    scores: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Attention outputs softmax(S) V of eq. (1), whatever the scores were made from.

    Args:
        scores: (B, H, T, T), or (1, H, T, T) for scores that all sequences share; any float dtype.
        value: (B, H, T, V); finite, also where the mask drops a key.
        mask: bool, broadcastable to (B, H, T, T), True = keep; None keeps all.
        causal: also hide the keys after a query.
        dropout: probability of dropping a weight, in [0, 1).

    Returns:
        (B, H, T, V) in the dtype of value; zeros for a query without keys.

    Raises:
        ValueError: shapes that do not fit, or a mask that is not bool.

    >>> scores = torch.tensor([[[[0.0, 0.0], [0.0, -torch.inf]]]])
    >>> synthesizer_attention(scores, torch.tensor([[[[2.0], [4.0]]]]))[0, 0].tolist()
    [[3.0], [2.0]]
    """
    fits = value.ndim == scores.ndim == 4 and value.shape[1:3] == (scores.shape[1], scores.shape[3])
    if not fits or len(scores) not in (1, len(value)):
        raise ValueError(
            f"value must be (batch, heads, tokens, features) for scores (batch or 1, heads, tokens, tokens); got "
            f"{tuple(value.shape)} and {tuple(scores.shape)}"
        )
    keep = _keep(scores, mask, causal, len(value))
    weights = _softmax(scores, keep)
    if dropout:
        weights = F.dropout(weights.expand(len(value), -1, -1, -1), dropout)  # shared scores, but not shared dropout
    weights = weights.to(value.dtype)
    if len(weights) == 1 and len(value) > 1:  # one product a head for the whole batch
        flat = value.permute(1, 2, 0, 3).flatten(2)  # (H, T, B V)
        output = (weights[0] @ flat).unflatten(2, (len(value), -1)).permute(2, 0, 1, 3)  # eq. (1)
    else:  # heads first, as the scores lie in memory
        output = (weights.transpose(0, 1) @ value.transpose(0, 1)).transpose(0, 1)  # eq. (1)
    if keep is not None:  # on the outputs, since another copy of the weights would be kept for the backward pass
        output = output.masked_fill(~keep.any(-1, keepdim=True), 0)
    return output


class SynthesizerAttention(nn.Module):
    """Self-attention with synthetic scores, eqs. (1) and (2), or with a mixture of kinds.

    Args:
        embed_dim: D, a multiple of num_heads.
        num_heads: H.
        mode: one of `SYNTHESIZER_MODES`, or several joined by "+", such as "random+vanilla"; "fixed_random" is a
            buffer that nothing trains, "vanilla" the ordinary scores.
        max_len: tokens of the longest sequence.
        hidden_dim: features of a head's hidden layer in the dense kinds; None: D / H.
        rank: k of "factorized_random".
        factors: (m, n) with m n = max_len of "factorized_dense"; None: the divisors nearest to the square root.
        mixing: "softmax": learned shares that sum to 1, one a kind and head, equal at the start; "sum": S are added.
        dropout: of the attention weights.
        bias: the linear layers have biases.

    Raises:
        ValueError: an unknown mode or mixing, or sizes that do not fit together.

    >>> SynthesizerAttention(8, 2, "random+vanilla", max_len=6)(torch.ones(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mode: str = "dense",
        max_len: int = 512,
        *,
        hidden_dim: int | None = None,
        rank: int = 8,
        factors: tuple[int, int] | None = None,
        mixing: str = "softmax",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kinds = mode.split("+")
        unknown = [kind for kind in kinds if kind not in SYNTHESIZER_MODES]
        if unknown or len(set(kinds)) < len(kinds):
            what = f"there is no {unknown[0]!r}" if unknown else "a kind stands twice"
            raise ValueError(
                f"mode must be one of {', '.join(SYNTHESIZER_MODES)}, or several of them joined by '+'; got {mode!r}: "
                f"{what}"
            )
        if mixing not in ("softmax", "sum"):
            raise ValueError(f"mixing must be 'softmax' or 'sum', got {mixing!r}")
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        if max_len < 1 or not 0 <= dropout < 1:
            raise ValueError(f"max_len must be at least 1 and dropout in [0, 1), got {max_len} and {dropout}")
        self.embed_dim, self.num_heads, self.mode, self.max_len = embed_dim, num_heads, mode, max_len
        self.dropout = dropout
        made = {
            "dense": lambda: DenseScores(embed_dim, num_heads, max_len, hidden_dim),
            "random": lambda: RandomScores(num_heads, max_len),
            "fixed_random": lambda: RandomScores(num_heads, max_len, trainable=False),
            "factorized_dense": lambda: FactorizedDenseScores(embed_dim, num_heads, max_len, hidden_dim, factors),
            "factorized_random": lambda: FactorizedRandomScores(num_heads, max_len, rank),
            "vanilla": lambda: DotProductScores(embed_dim, num_heads, bias),
        }
        self.parts = nn.ModuleDict({kind: made[kind]() for kind in kinds})
        mixed = len(kinds) > 1 and mixing == "softmax"
        self.mixture_logits = nn.Parameter(torch.zeros(len(kinds), num_heads)) if mixed else None
        self.value = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.output = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Outputs (B, T, D) for every token; those of padding are finite and mean nothing.

        Args:
            x: (B, T, D) tokens, any float dtype; what stands at padding has no influence, nan included.
            key_padding_mask: (B, T) bool, True for tokens (nn.MultiheadAttention's is the other way round); None: all.
            causal: no token sees a later one.
            mask: bool, broadcastable to (B, H, T, T), True where a query may see a key; None: everywhere.

        Returns:
            (B, T, D).

        Raises:
            ValueError: x or a mask has another shape, or there are more than max_len tokens.
        """
        x, mask = self._checked(x, key_padding_mask, mask)
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, V)  eq. (2)
        dropout = self.dropout if self.training else 0.0
        output = synthesizer_attention(self.scores(x), value, mask, causal=causal, dropout=dropout)
        return self.output(output.transpose(1, 2).flatten(2))  # eq. (1)

    def weights(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The attention weights that `forward` uses, (B, H, T, T), or (1, H, T, T) where all sequences share them."""
        x, mask = self._checked(x, key_padding_mask, mask)
        return synthesizer_weights(self.scores(x), mask, causal)

    def scores(self, x: Tensor) -> Tensor:
        """S of eq. (2) for tokens (B, T, D) without padding, (B or 1, H, T, T)."""
        scores = [part(x) for part in self.parts.values()]
        return scores[0] if len(scores) == 1 else mix_scores(scores, self.mixture_logits)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay would draw to the plain mean; as `param_groups(no_decay=...)` patterns."""
        free = ("table", "mixture_logits")
        return {name for name, _ in self.named_parameters() if name.endswith(free)}

    def resize_(self, max_len: int) -> SynthesizerAttention:
        """Tables for sequences of up to max_len tokens: the first places, or all stretched, which loses accuracy."""
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        parts = [part for part in self.parts.values() if not isinstance(part, DotProductScores)]
        for part in sorted(parts, key=lambda part: not isinstance(part, FactorizedDenseScores)):  # it may refuse
            part.resize_(max_len)  # type: ignore[operator]
        self.max_len = max_len
        return self

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, mode={self.mode!r}, max_len={self.max_len}"

    def _checked(self, x: Tensor, keep: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens without the content of padding, and both masks as one (B or 1, H or 1, T or 1, T)."""
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"x must be (batch, tokens, {self.embed_dim}), got {tuple(x.shape)}")
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where a query may see a key; got {mask.dtype}")
        if keep is None:
            return x, mask
        if keep.dtype != torch.bool or keep.shape != x.shape[:2]:
            raise ValueError(
                f"key_padding_mask must be bool {tuple(x.shape[:2])}, True for tokens; got {keep.dtype} "
                f"{tuple(keep.shape)}. Turn a 0/1 mask into one with mask.bool()"
            )
        x = x.masked_fill(~keep[..., None], 0)  # a fill, because 0 * nan is nan, in the backward pass too
        keys = keep[:, None, None, :]
        return x, keys if mask is None else mask & keys


def _keep(scores: Tensor, mask: Tensor | None, causal: bool, rows: int | None) -> Tensor | None:
    """Both masks as one, or None where every key is seen; rows of the batch, None: as many as the mask has."""
    if mask is not None:
        full = (rows, *scores.shape[1:])[4 - mask.ndim :]
        pairs = zip(mask.shape, full, strict=mask.ndim <= 4)
        if mask.dtype != torch.bool or mask.ndim > 4 or any(n != 1 and m not in (n, None) for n, m in pairs):
            raise ValueError(
                f"mask must be bool, True = keep, and broadcast to the scores {tuple(scores.shape)}; got {mask.dtype} "
                f"{tuple(mask.shape)}. For padding of the keys alone write mask[:, None, None, :]"
            )
        mask = mask[(None,) * (4 - mask.ndim)]
    if not causal:
        return mask
    below = causal_mask(scores.shape[2], scores.shape[3], scores.device)[None, None]
    return below if mask is None else mask & below


def _softmax(scores: Tensor, keep: Tensor | None) -> Tensor:
    """Softmax over the keys kept; a query that keeps none takes all of them, for its caller to blot out."""
    scores = scores.transpose(0, 1)  # heads first, as synthetic scores lie in memory
    if keep is not None:
        open_rows = keep | ~keep.any(-1, keepdim=True)
        scores = scores.masked_fill(~open_rows.transpose(0, 1), -torch.inf)
    return scores.softmax(-1).to(scores.dtype).transpose(0, 1)  # sums in float32 or better, whatever the dtype
