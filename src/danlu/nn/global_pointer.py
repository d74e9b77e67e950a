r"""GlobalPointer: a score for every span of every type, so that nested and overlapping spans need no tag scheme.

    q_hi = W_qh x_i + b_qh,   k_hj = W_kh x_j + b_kh                                          (1)
    s_h(i, j) = (R_i q_hi) . (R_j k_hj) / sqrt(d)                                             (2)
    s_h(i, j) = (R_i q_i) . (R_j k_j) / sqrt(d) + (u_hj + v_hi) / 2                           (3)
    z_i = W x_i + b,   q_i = even entries of z_i,   k_i = odd ones,   (u, v)_i = V z_i + c    (4)

x_i are the encoder's vectors, h the types, d the size of a head, R_i the rotation to position i (`danlu.nn.positions`):
without it length and place of a span are invisible and the heads learn slowly. (2) is GlobalPointer, 2 d (D + 1)
weights a type; (3) with (4) is EfficientGlobalPointer: one shared "is it a span" and 4 d + 2 weights a type for "of
which". s_h(i, j) > 0 says that a span of type h starts at token i and ends WITH token j. Scores of masked tokens, and
of ends before starts (`lower_triangle_masked`), are -inf; `danlu.losses.multilabel` leaves -inf out, so the loss stays
finite. Masked tokens may hold anything. Relations (head to head, tail to tail) want rotary=False and
lower_triangle_masked=False, as in GPLinker.

Parameter names are bert4keras' and bert4torch's (dense; p_dense, q_dense); bert4torch's efficient form keeps q and k in
halves of z and its biases type by type, so its checkpoints need their rows reordered.

Source: kexue.fm/archives/8373 (2) and 8877 (3); Su et al., 2022, arXiv:2208.03054; 8888 (GPLinker).
Shapes: B batch, T tokens, D features, H types, d size of a head.
"""

import torch
from torch import Tensor, nn

from danlu.nn.positions import apply_rotary, rotary_angles

__all__ = ["EfficientGlobalPointer", "GlobalPointer", "decode_spans"]

Span = tuple[int, int, int, float]


def decode_spans(logits: Tensor, mask: Tensor | None = None, threshold: float = 0.0) -> list[list[Span]]:
    """The spans whose score lies above the threshold, by sentence.

    Args:
        logits: (B, H, T, T) scores of type, first token, last token; any float dtype. Ends before starts are no spans,
            whatever their score.
        mask: (B, T) bool, True = keep: no span starts or ends at another token (such as [CLS]); None keeps all.
        threshold: in logits; 0 is where the loss puts it, higher trades recall for precision.

    Returns:
        For each sentence a list of (start, end, type, score) in this order, end exclusive, in tokens.

    Raises:
        ValueError: the shapes do not fit, or mask is not bool.

    >>> logits = torch.full((1, 2, 3, 3), -1.0)
    >>> logits[0, 1, 0, 1] = 2.5
    >>> decode_spans(logits)
    [[(0, 2, 1, 2.5)]]
    """
    if logits.ndim != 4 or logits.shape[2] != logits.shape[3]:
        raise ValueError(f"decode_spans needs logits (batch, types, tokens, tokens); got {tuple(logits.shape)}")
    logits = logits.detach()
    found = (logits > threshold).triu_()  # (B, H, T, T)
    if mask is not None:
        _check_mask(mask, logits.shape[0], logits.shape[2])
        found &= (mask[:, :, None] & mask[:, None, :])[:, None]
    b, i, j, h = found.permute(0, 2, 3, 1).nonzero(as_tuple=True)  # sorted by sentence, start, end, type
    spans: list[list[Span]] = [[] for _ in range(len(logits))]
    score = logits[b, h, i, j].tolist()
    for row, start, last, kind, value in zip(b.tolist(), i.tolist(), j.tolist(), h.tolist(), score, strict=True):
        spans[row].append((start, last + 1, kind, value))
    return spans


class GlobalPointer(nn.Module):
    r"""Scores of all spans, a pair of projections for each type, eq. (2).

    Args:
        dim: D, features of the encoder.
        num_types: H.
        head_size: d, even with rotary.
        rotary: turn q and k by their positions.
        lower_triangle_masked: -inf where the end stands before the start.
        bias: give the projections a bias.

    >>> pointer = GlobalPointer(4, num_types=3, head_size=2)
    >>> logits = pointer(torch.zeros(1, 2, 4), torch.tensor([[True, False]]))
    >>> tuple(logits.shape), logits[0, 0].tolist()
    ((1, 3, 2, 2), [[0.0, -inf], [-inf, -inf]])
    """

    def __init__(
        self,
        dim: int,
        num_types: int,
        head_size: int = 64,
        rotary: bool = True,
        lower_triangle_masked: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(dim, num_types, head_size, rotary)
        self.dim, self.num_types, self.head_size = dim, num_types, head_size
        self.rotary, self.lower_triangle_masked = rotary, lower_triangle_masked
        self.dense = _lecun_linear(dim, num_types * 2 * head_size, bias)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_types} types, rotary={self.rotary}, lower_triangle_masked={self.lower_triangle_masked}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores (B, H, T, T) of type, first and last token: x (B, T, D), mask (B, T) bool, True = keep."""
        x = _checked(x, mask, self.dim)
        qk = self.dense(x).unflatten(-1, (self.num_types, 2, self.head_size))  # (B, T, H, 2, d)  eq. (1)
        q, k = qk.permute(3, 0, 2, 1, 4)  # (B, H, T, d) each
        logits = _products(q, k, self.rotary)  # (B, H, T, T)  eq. (2)
        return _masked(logits, mask, self.lower_triangle_masked)


class EfficientGlobalPointer(nn.Module):
    r"""Scores of all spans, one projection for all types and two biases for each, eq. (3).

    Args:
        dim: D, features of the encoder.
        num_types: H.
        head_size: d, even with rotary.
        rotary: turn q and k by their positions.
        lower_triangle_masked: -inf where the end stands before the start.
        bias: give the projections a bias.

    >>> sum(p.numel() for p in EfficientGlobalPointer(768, 50).parameters())  # against 50 * 2 * 64 * 769
    111332
    """

    def __init__(
        self,
        dim: int,
        num_types: int,
        head_size: int = 64,
        rotary: bool = True,
        lower_triangle_masked: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(dim, num_types, head_size, rotary)
        self.dim, self.num_types, self.head_size = dim, num_types, head_size
        self.rotary, self.lower_triangle_masked = rotary, lower_triangle_masked
        self.p_dense = _lecun_linear(dim, 2 * head_size, bias)
        self.q_dense = _lecun_linear(2 * head_size, 2 * num_types, bias)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_types} types, rotary={self.rotary}, lower_triangle_masked={self.lower_triangle_masked}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores (B, H, T, T) of type, first and last token: x (B, T, D), mask (B, T) bool, True = keep."""
        x = _checked(x, mask, self.dim)
        z = self.p_dense(x)  # (B, T, 2 d)  eq. (4)
        shared = _products(z[..., ::2], z[..., 1::2], self.rotary)  # (B, T, T)
        of_end, of_start = self.q_dense(z).mT.unflatten(1, (self.num_types, 2)).unbind(2)  # (B, H, T) each: u, v
        logits = shared[:, None] + (of_end[:, :, None, :] + of_start[:, :, :, None]) / 2  # (B, H, T, T)  eq. (3)
        return _masked(logits, mask, self.lower_triangle_masked)


def _products(q: Tensor, k: Tensor, rotary: bool) -> Tensor:
    """Scaled products (..., T, T) of queries and keys (..., T, d)."""
    tokens, size = q.shape[-2:]
    if rotary:
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        cos, sin = rotary_angles(torch.arange(tokens, device=q.device, dtype=exact), size)  # (T, d)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
    return q @ k.mT / size**0.5


def _masked(logits: Tensor, mask: Tensor | None, lower_triangle_masked: bool) -> Tensor:
    """Put -inf where an end is masked or, if asked for, stands before its start; logits (B, H, T, T)."""
    tokens = logits.shape[-1]
    keep = None if mask is None else (mask[:, :, None] & mask[:, None, :])[:, None]  # (B, 1, T, T)
    if lower_triangle_masked:
        upper = torch.ones(tokens, tokens, dtype=torch.bool, device=logits.device).triu()
        keep = upper if keep is None else keep & upper
    return logits if keep is None else logits.masked_fill(~keep, -torch.inf)


def _lecun_linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A linear layer that starts with variance 1 / inputs, cut at two standard deviations, and bias 0."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    std = inputs**-0.5 / 0.87962566103423978  # the cut takes this share of the deviation
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def _check_sizes(dim: int, num_types: int, head_size: int, rotary: bool) -> None:
    if min(dim, num_types, head_size) < 1 or (rotary and head_size % 2):
        raise ValueError(
            "dim, num_types and head_size must be at least 1 and head_size even where rotary is on; got "
            f"{dim}, {num_types} and {head_size}"
        )


def _checked(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """The input with zeros at masked tokens: -inf in the scores would not keep a nan out of the gradients."""
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(f"this pointer needs x (batch, tokens, {dim}); got {tuple(x.shape)}")
    if mask is None:
        return x
    _check_mask(mask, *x.shape[:2])
    return x.masked_fill(~mask[..., None], 0)


def _check_mask(mask: Tensor, batch: int, tokens: int) -> None:
    if mask.dtype != torch.bool or mask.shape != (batch, tokens):
        raise ValueError(
            f"mask must be bool {(batch, tokens)}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
            "Turn a 0/1 mask into one with mask.bool()"
        )
