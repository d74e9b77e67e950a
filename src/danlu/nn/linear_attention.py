r"""Linear attention: positive features in place of exponentials of products, so that keys are summed once for all.

    o_i = sum_j w_ij v_j / sum_j w_ij,    w_ij = sum_r f_r(q_i) f_r(k_j)                                       (1)
        = sum_r f_r(q_i) S_r / sum_r f_r(q_i) z_r,    S_r = sum_j f_r(k_j) v_j,    z_r = sum_j f_r(k_j)        (2)
    elu          f(x) = elu(x) + 1                                                                             (3)
    performer    f_r(x) = exp(w_r . y - |y|^2 / 2) / sqrt(M),    y = x sqrt(s)                                 (4)
    E over w_r ~ N(0, I) of sum_r f_r(q) f_r(k) = exp(s q . k)                                                 (5)
    a_ir = log f_r(q_i) + c_r - max_r(log f_r(q_i) + c_r),    c_r = max_j log f_r(k_j)                         (6)

By (5) the performer estimates softmax attention without bias in its weights; the w_r are made orthogonal in blocks,
which lowers the variance and leaves every single one normal. Sums run over logarithms of features: with c_r from the
keys and the maximum of (6) from the query, every term is at most 1, the denominator is at least 1, and (1) is exact
without the constants that other implementations add to features or denominators against underflow. The shifts of one
sequence and head depend on nothing else, so batches and padding change nothing.

Causal attention takes (2) over what came before, chunk after chunk, and (1) inside a chunk; the shift of a query comes
from what it may see, so that no later key is felt, not even in the rounding.

Source: Katharopoulos et al., 2020, arXiv:2006.16236, (1) to (3); Choromanski et al., 2020, arXiv:2009.14794, (4) and
(5); Su, kexue.fm/archives/7546 and kexue.fm/archives/7921. (6) is ours.
Shapes: B sequences, H heads, T queries, S keys, K features of a key, V of a value, M features of (2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from danlu.math.precision import wide, wide_dtype

__all__ = ["elu_log_features", "favor_log_features", "linear_attention", "orthogonal_projection"]

CHUNK = 16  # positions whose pairs are formed; more cost more products, fewer more steps


def linear_attention(
    query_log_features: Tensor,
    key_log_features: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention outputs of eq. (1) from the logarithms of positive features, in time linear in T and S.

    Args:
        query_log_features: (B, H, T, M), log f(q); float32 or better serves best.
        key_log_features: (B, H, S, M), log f(k).
        value: (B, H, S, V).
        mask: (B, S) bool, True for tokens among the keys; None: all.
        causal: hide the keys after a query; the last query is at the last key, S >= T.

    Returns:
        (B, H, T, V) in the dtype of value; zeros where a query sees no key.

    Raises:
        ValueError: shapes or the mask do not fit, or causal with fewer keys than queries.

    >>> value = torch.tensor([[[[1.0], [3.0], [8.0]]]])
    >>> linear_attention(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), value, causal=True).flatten()
    tensor([1., 2., 4.])
    """
    _check(query_log_features, key_log_features, value, mask, causal)
    with torch.autocast(value.device.type, enabled=False):
        dtype = torch.promote_types(wide_dtype(value), wide_dtype(query_log_features))
        log_q, log_k, v = (x.to(dtype) for x in (query_log_features, key_log_features, value))
        if mask is not None:
            hidden = ~mask[:, None, :, None]
            log_k, v = log_k.masked_fill(hidden, -torch.inf), v.masked_fill(hidden, 0.0)
        output = _causal(log_q, log_k, v) if causal else _seen_by_all(log_q, log_k, v)
    return output.to(value.dtype)


def elu_log_features(x: Tensor) -> Tensor:
    """log(elu(x) + 1), eq. (3), which cannot underflow: x below 0, log(1 + x) above.

    Args:
        x: any shape, any float dtype.

    Returns:
        The shape of x, float32 or better.

    >>> elu_log_features(torch.tensor([-200.0, 0.0]))
    tensor([-200.,    0.])
    """
    x = wide(x)
    return torch.where(x < 0, x, x.clamp_min(0).log1p())  # eq. (3)


def favor_log_features(x: Tensor, projection: Tensor, scale: float | None = None) -> Tensor:
    """Logarithms of the performer's positive random features, eq. (4).

    Args:
        x: (..., K) queries or keys, any float dtype.
        projection: (M, K), rows w_r from `orthogonal_projection` or any standard normal ones.
        scale: s of the softmax that is estimated; None: 1 / sqrt(K).

    Returns:
        (..., M), float32 or better.

    Raises:
        ValueError: the projection does not fit, or the scale is not positive.

    >>> favor_log_features(torch.tensor([2.0, 0.0]), torch.eye(2), scale=1.0)  # 2 - 2 - log(2) / 2 and -2 - log(2) / 2
    tensor([-0.3466, -2.3466])
    """
    dim = x.shape[-1]
    if projection.ndim != 2 or projection.shape[1] != dim or not len(projection):
        raise ValueError(
            f"favor_log_features needs a projection (M, {dim}) for x {tuple(x.shape)}, got {tuple(projection.shape)}"
        )
    scale = dim**-0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale must be > 0, since both sides share its root; got {scale}")
    with torch.autocast(x.device.type, enabled=False):
        y = wide(x) * scale**0.5
        down = (y.square().sum(-1, keepdim=True) + math.log(len(projection))) / 2
        return y @ projection.to(y.dtype).mT - down  # eq. (4)


def orthogonal_projection(
    num_features: int, dim: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal rows that are orthogonal in blocks of `dim`.

    Args:
        num_features: M, at least 1.
        dim: K, at least 1.
        generator: where the numbers come from, on the CPU; None: torch's own stream.
        dtype: of the rows, float32 or float64.

    Returns:
        (M, K) on the CPU.

    Raises:
        ValueError: a size below 1.

    >>> w = orthogonal_projection(2, 2, torch.Generator().manual_seed(0))
    >>> (w[0] @ w[1]).abs() < 1e-5
    tensor(True)
    """
    if num_features < 1 or dim < 1:
        raise ValueError(f"orthogonal_projection needs sizes of at least 1, got {num_features} features of {dim}")
    blocks = -(-num_features // dim)
    normal = torch.randn(2, blocks, dim, dim, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal[0])
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]  # uniform among the orthogonal matrices
    lengths = normal[1].reshape(-1, dim).norm(dim=1, keepdim=True)
    return (q.mT.reshape(-1, dim) * lengths)[:num_features].to(dtype)


def _seen_by_all(log_q: Tensor, log_k: Tensor, v: Tensor) -> Tensor:
    """Eq. (2) over all keys."""
    shift, sums, mass = _state(log_k, v)
    far = log_q + shift[:, :, None]  # (B, H, T, M)
    queries = (far - _finite(far.detach().amax(-1, keepdim=True))).exp()  # eq. (6)
    return _divide(queries @ sums, queries @ mass)  # eq. (2)


def _causal(log_q: Tensor, log_k: Tensor, v: Tensor) -> Tensor:
    """Eq. (2) over earlier chunks and (1) inside each."""
    if not log_q.shape[2]:
        return v[:, :, :0]
    before = log_k.shape[2] - log_q.shape[2]
    shift, sums, mass = _state(log_k[:, :, :before], v[:, :, :before])
    outputs = []
    pieces = zip(log_q.split(CHUNK, 2), log_k[:, :, before:].split(CHUNK, 2), v[:, :, before:].split(CHUNK, 2),
                 strict=True)  # fmt: skip
    for q, k, values in pieces:
        size = q.shape[2]
        future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
        pairs = (q[:, :, :, None] + k[:, :, None]).masked_fill(future[..., None], -torch.inf)  # (B, H, C, C, M)
        far = q + shift[:, :, None]  # (B, H, C, M)
        top = _finite(torch.maximum(far.amax(-1), pairs.amax((-2, -1))).detach())  # (B, H, C)
        weights = (pairs - top[..., None, None]).exp().sum(-1)  # (B, H, C, C)  eq. (1)
        queries = (far - top[..., None]).exp()
        total = queries @ mass + weights.sum(-1, keepdim=True)
        outputs.append(_divide(queries @ sums + weights @ values, total))
        shift, sums, mass = _state(k, values, shift, sums, mass)
    return torch.cat(outputs, 2)


def _state(
    log_k: Tensor, v: Tensor, shift: Tensor | None = None, sums: Tensor | None = None, mass: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """c (B, H, M) of eq. (6), and S (B, H, M, V) and z (B, H, M, 1) of eq. (2) divided by exp(c), with what was before.

    Where no key was seen c is -inf.
    """
    if not log_k.shape[2]:
        nothing = v.new_zeros(*log_k.shape[:2], log_k.shape[3], v.shape[3])
        return log_k.new_full(nothing.shape[:3], -torch.inf), nothing, nothing.new_zeros(*nothing.shape[:3], 1)
    top = log_k.detach().amax(2)  # (B, H, M)
    if shift is not None:
        top = torch.maximum(top, shift)
    keys = (log_k - _finite(top)[:, :, None]).exp().mT  # (B, H, M, S)
    new_sums, new_mass = keys @ v, keys.sum(-1, keepdim=True)
    if shift is None or sums is None or mass is None:
        return top, new_sums, new_mass
    kept = (shift - _finite(top)).exp()[..., None]
    return top, new_sums + kept * sums, new_mass + kept * mass


def _divide(sums: Tensor, mass: Tensor) -> Tensor:
    """Zeros where there is no mass, which is at least 1 elsewhere."""
    return torch.where(mass > 0, sums / mass.masked_fill(mass <= 0, 1.0), 0.0)


def _finite(x: Tensor) -> Tensor:
    """0 for -inf, so that differences to it are -inf and not NaN."""
    return x.masked_fill(x == -torch.inf, 0.0)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> None:
    four = query.ndim == key.ndim == value.ndim == 4
    if not four or not (
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3]
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(
            f"linear_attention needs features (B, H, T, M), (B, H, S, M) and value (B, H, S, V); got {shapes}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(key), key.shape[2])):
        raise ValueError(
            f"mask must be bool {(len(key), key.shape[2])}, True for tokens; got {mask.dtype} {tuple(mask.shape)}"
        )
    if causal and key.shape[2] < query.shape[2]:
        raise ValueError(
            f"causal attention needs at least as many keys as queries; got {query.shape[2]} queries and "
            f"{key.shape[2]} keys"
        )
