r"""How well Nyström attention would do, or does, in a given model: the author's open question, answered by numbers.

    condition        s_max(A) / s_min(A) of A = softmax(s Q~ K~^T)                                             (1)
    residual         ||I - A V||_F of the pseudo-inverse V in use                                              (2)
    row error        max over queries of |sum_j (F V G)_ij - 1|                                                (3)
    negative mass    mean over queries of sum_j max(-(F V G)_ij, 0); a distribution has none                   (4)
    error            ||O - O*||_F / ||O*||_F, O* the outputs of softmax attention                              (5)

On queries and keys without structure (5) is large whatever the length; where neighbours are alike it is small. So it is
to be measured on the vectors of a model at work: `attention_inputs` catches those of every layer.

Source: Xiong et al., 2021, arXiv:2102.03902; Su, kexue.fm/archives/8180, which asks how large the error is.
Shapes: B sequences, H heads, T queries, S keys, K and V features of a key and a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.math.pseudo_inverse import pinv_residual, pseudo_inverse
from danlu.nn.attention import AttentionContext, MultiHeadAttention, attend, some_key
from danlu.nn.landmarks import segment_means
from danlu.nn.nystrom import landmark_softmax, nystrom_attention, pinv_settings
from danlu.nn.nystrom_factors import nystrom_factors
from danlu.nn.nystrom_layer import NystromAttention
from danlu.nn.positions import apply_rotary

__all__ = ["AttentionInputs", "NystromReport", "attention_inputs", "nystrom_report"]

SAMPLED = 256  # queries whose rows of the n x n matrix are formed


@dataclass(frozen=True)
class NystromReport:
    """Eqs. (1) to (5), each a tensor (B, H) in float32 or better.

    Args:
        condition: eq. (1).
        residual: eq. (2).
        steps: (B, H) int64, iterations that V took; -1 where it was not found by iteration.
        row_error: eq. (3), over the sampled queries.
        negative_mass: eq. (4), over the sampled queries.
        error: eq. (5), over all of them; 0 for a sequence with no more tokens than landmarks.
    """

    condition: Tensor
    residual: Tensor
    steps: Tensor
    row_error: Tensor
    negative_mass: Tensor
    error: Tensor

    def __str__(self) -> str:
        """Medians and worst cases, a line each."""
        lines = [f"{'':14} {'median':>10} {'worst':>10}"]
        for name in ("condition", "residual", "steps", "row_error", "negative_mass", "error"):
            values = getattr(self, name).double()
            lines.append(f"{name.replace('_', ' '):14} {values.median().item():10.3g} {values.max().item():10.3g}")
        return "\n".join(lines)


class AttentionInputs(NamedTuple):
    """What a layer of attention compares, after projections and rotations.

    Args:
        query: (B, H, T, K).
        key: (B, H, S, K).
        value: (B, H, S, V).
        mask: (B, S) bool, True for tokens; None: all.
        scale: factor of the products.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float


@torch.no_grad()
def nystrom_report(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    num_landmarks: int = 64,
    pinv: int | float | str = "auto",
) -> NystromReport:
    """What Nyström attention makes of given queries, keys and values of self-attention, beside softmax attention.

    Args:
        query: (B, H, T, K), any float dtype.
        key: (B, H, T, K).
        value: (B, H, T, V).
        mask: (B, T) bool, True for tokens; None: all.
        scale: factor of the products, None: 1 / sqrt(K).
        num_landmarks: m.
        pinv: as of `danlu.nn.nystrom_attention`.

    Returns:
        The report; `print` shows it. `nystrom_report(*inputs)` takes what `attention_inputs` gives.

    Raises:
        ValueError: as of `danlu.nn.nystrom_attention`, or keys of another length than the queries.

    >>> x = torch.arange(4.0).view(1, 1, 4, 1)
    >>> nystrom_report(x, x, x, num_landmarks=4).error  # as many landmarks as tokens
    tensor([[0.]])
    """
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"nystrom_report is for self-attention; got {query.shape[2]} queries and {key.shape[2]} keys")
    s = query.shape[-1] ** -0.5 if scale is None else scale
    options: dict[str, Any] = {"mask": mask, "pinv": pinv, "scale": s}
    ours = wide(nystrom_attention(query, key, value, num_landmarks, **options))
    keep = query.new_ones(query.shape[0], query.shape[2], dtype=torch.bool) if mask is None else mask
    q, k, v = (x.masked_fill(~keep[:, None, :, None], 0.0) for x in (query, key, value))
    exact = wide(attend(q, k, v, mask=some_key(keep)[:, None, None, :], scale=s)[0])
    exact = exact.masked_fill(~keep[:, None, :, None], 0.0)
    norm = exact.flatten(2).norm(dim=-1)
    error = (ours - exact).flatten(2).norm(dim=-1) / torch.where(norm > 0, norm, 1.0)  # eq. (5)
    few = (keep.sum(1) <= num_landmarks)[:, None]
    m = min(num_landmarks, query.shape[2])
    a = landmark_softmax(segment_means(q, m, mask), segment_means(k, m, mask), s)
    eye = torch.eye(m, dtype=a.dtype, device=a.device)
    a = torch.where(few[..., None, None], eye, a)  # such a sequence needs no inverse
    steps = torch.full(a.shape[:2], -1, device=a.device)
    if pinv == "exact":
        residual = pinv_residual(a, torch.linalg.pinv(a))
    else:
        _, residual, steps = pseudo_inverse(a, *pinv_settings(pinv, query.dtype))
    rows = torch.linspace(0, query.shape[2] - 1, min(SAMPLED, query.shape[2]), device=q.device).long()
    left, middle, right = nystrom_factors(query, key, num_landmarks, **options)
    weights = left[:, :, rows] @ middle @ right  # (B, H, R, T)
    seen = keep[:, rows][:, None]  # (B, 1, R)
    count = seen.sum(-1).clamp_min(1)
    return NystromReport(
        condition=torch.linalg.cond(a),  # eq. (1)
        residual=residual,  # eq. (2)
        steps=steps,
        row_error=((weights.sum(-1) - 1).abs() * seen).amax(-1),  # eq. (3)
        negative_mass=(weights.clamp_max(0).sum(-1).neg() * seen).sum(-1) / count,  # eq. (4)
        error=error,
    )


@torch.no_grad()
def attention_inputs(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, AttentionInputs]:
    """Queries, keys and values of every self-attention layer while a model runs once, whatever kind of attention it is.

    Args:
        model: holds layers of `danlu.nn.MultiHeadAttention` (as transformers of `danlu.text` do), `NystromAttention`
            or `nn.MultiheadAttention(batch_first=True)`; it runs in the mode that it is in, so call `eval` before.
        *args: of the model.
        **kwargs: of the model.

    Returns:
        Name of the layer to its inputs, in the order of calls; a shared layer's last call counts. Of a packed batch the
        longest sequences.

    Raises:
        ValueError: no such layer was called.

    >>> layer = MultiHeadAttention(4, 2, 2, 2)
    >>> attention_inputs(layer, torch.ones(1, 3, 4))[""].query.shape
    torch.Size([1, 2, 3, 2])
    """
    found: dict[str, AttentionInputs] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention | NystromAttention | nn.MultiheadAttention):

            def catch(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
                inputs = _inputs(layer, given, named)
                if inputs is not None:
                    found.pop(name, None)
                    found[name] = inputs

            handles.append(module.register_forward_pre_hook(catch, with_kwargs=True))
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            "no layer of self-attention was called; attention_inputs knows danlu.nn.MultiHeadAttention, "
            "NystromAttention and nn.MultiheadAttention(batch_first=True) outside of torch's fast path (model.train())"
        )
    return found


def _inputs(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionInputs | None:
    """What a call of a layer will compare; None where it is no self-attention of a layout."""
    if isinstance(layer, MultiHeadAttention):
        x, context = args[0], args[1] if len(args) > 1 else kwargs.get("context")
        if not isinstance(context, AttentionContext):
            if x.ndim != 3:
                return None
            parts = [part.unflatten(0, x.shape[:2]) for part in layer.project(x.flatten(0, 1))]
            mask = None if context is None else context.bool()
        else:
            query, key, value = layer.project(x)
            if context.rotary is not None:
                cos, sin = (part[:, None] for part in context.rotary)
                query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
            parts = [context.layout.split(part)[-1] for part in (query, key, value)]
            mask = context.layout.keep
        query, key, value = (part.transpose(1, 2) for part in parts)
        return AttentionInputs(query, key, value, mask, layer.scale)
    names = ("query", "key", "value", "key_padding_mask")
    given = dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in (*names, "mask") if name in kwargs}
    query = given["query"]
    if given.get("key", query) is not query or query.ndim != 3:
        return None
    if isinstance(layer, nn.MultiheadAttention):
        if not layer.batch_first or layer.in_proj_weight is None:
            return None
        layer = NystromAttention.from_attention(layer)
    assert isinstance(layer, NystromAttention)
    padding = given.get("key_padding_mask")
    keep = given.get("mask") if padding is None else ~padding if padding.dtype == torch.bool else padding == 0
    query, key, value = layer.project(query, query, query)
    return AttentionInputs(query, key, value, keep, layer.head_dim**-0.5)
