r"""Where a token stands: sinusoids, rotations, clipped and bucketed distances, and a table stretched beyond its end.

    sinusoidal     s(p)_{2i} = sin(p w_i),  s(p)_{2i+1} = cos(p w_i),  w_i = base^{-2i/D}                        (1)
    rotary         (x_{2i}, x_{2i+1}) -> (x_{2i} cos - x_{2i+1} sin, x_{2i+1} cos + x_{2i} sin)(p w_i)           (2)
    clipped        clip(k - q, -c, c) + c                                                                       (3)
    bucketed       n  if n < m,  else  min(m + floor((B - m) log(n/m) / log(M/m)), B - 1)                        (4)
    hierarchical   P(t) = a u_{t div N} + (1 - a) u_{t mod N},   u = (p - a p_0) / (1 - a)                       (5)

p, q and k are positions, D features. In (2) the pairs are neighbours, as in RoFormer; Llama pairs feature i with
D/2 + i, which is another model. In (4) n is the distance to an earlier key, m = B/2 of the B buckets hold one distance
each, the others grow in equal ratios up to M; where later keys count too, they have buckets of their own above these B.
(5) extends a trained table of N rows to N^2: for t < N it is the table itself, whatever a is. With a = 1/2 positions
iN + j and jN + i would be one, so a should differ from it.

Source: (1) Vaswani et al., 2017, arXiv:1706.03762; (2) Su et al., 2021, arXiv:2104.09864, kexue.fm/archives/8265; (3)
Wei et al., 2019, arXiv:1909.00204; (4) Raffel et al., 2019, arXiv:1910.10683; (5) kexue.fm/archives/7947.
Shapes: D features of one vector, Tq queries, Tk keys, N rows of a position table.
"""

import torch
from torch import Tensor

__all__ = [
    "apply_rotary",
    "clipped_distances",
    "hierarchical_positions",
    "rotary_angles",
    "sinusoidal_positions",
    "t5_buckets",
]


def sinusoidal_positions(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Sines and cosines of the positions at `dim` / 2 frequencies, interleaved, eq. (1).

    Args:
        positions: any shape, integers or floats; they need not be whole.
        dim: features D, even.
        base: the wavelengths run from 2 pi to 2 pi base.

    Returns:
        (*positions.shape, dim), float64 for float64 positions, else float32.

    Raises:
        ValueError: dim is not a positive even number, or base is not positive.

    >>> sinusoidal_positions(torch.tensor([0, 1]), 2)  # sin 1 = 0.8415, cos 1 = 0.5403
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    angles = _angles(positions, dim, base)  # (..., D/2)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (..., D)  eq. (1)
    return table.to(_result_dtype(positions))


def rotary_angles(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines that `apply_rotary` turns vectors by, each frequency of eq. (1) standing twice.

    Args:
        positions: any shape, integers or floats.
        dim: features D of the vectors to turn, even.
        base: the wavelengths run from 2 pi to 2 pi base.

    Returns:
        (cos, sin), each (*positions.shape, dim), float64 for float64 positions, else float32.

    Raises:
        ValueError: dim is not a positive even number, or base is not positive.

    >>> rotary_angles(torch.tensor([0]), 2)
    (tensor([[1., 1.]]), tensor([[0., 0.]]))
    """
    angles = _angles(positions, dim, base)
    angles = torch.stack([angles, angles], dim=-1).flatten(-2)  # (..., D)
    dtype = _result_dtype(positions)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbouring features turned by its angle, eq. (2).

    Queries and keys turned by their own positions have products that depend on the difference of the positions only.

    Args:
        x: (..., D), any float dtype; half precision is turned in float32.
        cos: as `rotary_angles` gives it, broadcasting against x: (T, D) for x (B, H, T, D).
        sin: the same shape as cos.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: x and the angles have another last axis, or it is odd.

    >>> apply_rotary(torch.tensor([3.0, 4.0]), torch.zeros(2), torch.ones(2))  # a quarter turn
    tensor([-4.,  3.])
    """
    dim = x.shape[-1]
    if dim % 2 or cos.shape[-1] != dim or sin.shape != cos.shape:
        raise ValueError(
            f"apply_rotary needs x, cos and sin with the same even last axis; got {tuple(x.shape)}, {tuple(cos.shape)} "
            f"and {tuple(sin.shape)}. rotary_angles(positions, {dim}) gives them."
        )
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or x.device.type not in ("cpu", "cuda"):
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)  # a quarter turn of every pair
        return (x * cos + turned * sin).to(x.dtype)  # eq. (2)
    wide = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    pairs = x.to(wide).contiguous().unflatten(-1, (-1, 2))  # one complex product a pair is the quickest form of eq. (2)
    angles = torch.complex(cos[..., ::2].to(wide), sin[..., ::2].to(wide))
    return torch.view_as_real(torch.view_as_complex(pairs) * angles).flatten(-2).to(x.dtype)


def clipped_distances(query_positions: Tensor, key_positions: Tensor, clip: int) -> Tensor:
    """Row of a table of 2 clip + 1 relative vectors for each query and key, eq. (3).

    Args:
        query_positions: (..., Tq) int64.
        key_positions: (..., Tk) int64.
        clip: keys farther away share the outermost row.

    Returns:
        (..., Tq, Tk) int64 in [0, 2 clip]; clip itself where query and key stand at the same position.

    Raises:
        ValueError: clip is below 1.

    >>> clipped_distances(torch.tensor([1]), torch.tensor([0, 1, 2, 9]), 2)
    tensor([[1, 2, 3, 4]])
    """
    if clip < 1:
        raise ValueError(f"clip must be at least 1, got {clip}; NEZHA has 64")
    return (key_positions[..., None, :] - query_positions[..., :, None]).clamp(-clip, clip) + clip  # eq. (3)


def t5_buckets(distances: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket of each distance: near ones have their own, far ones share theirs, eq. (4).

    Args:
        distances: any shape, int64: the key's position minus the query's.
        bidirectional: True (encoder): later keys have the upper half of the buckets; False (decoder): bucket 0.
        num_buckets: of both directions together.
        max_distance: from here on distances share the last bucket; tokens.

    Returns:
        The shape of distances, int64 in [0, num_buckets).

    Raises:
        ValueError: num_buckets is below 2 (4 for both directions), or no distance is left to share a bucket.

    >>> t5_buckets(torch.tensor([-200, -16, -1, 0, 5]), bidirectional=False)
    tensor([31, 16,  1,  0,  0])
    """
    count = num_buckets // 2 if bidirectional else num_buckets  # B
    exact = count // 2  # m
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"t5_buckets needs at least {4 if bidirectional else 2} buckets and a max_distance above {max(exact, 1)} "
            f"(nearer ones have a bucket of their own); got num_buckets={num_buckets}, max_distance={max_distance}"
        )
    near = torch.arange(max_distance + 1, device=distances.device)
    ratio = (near.clamp_min(exact).double() / exact).log() / torch.tensor(max_distance / exact).double().log()
    # 1e-9: a logarithm that should be whole may come out just below; no other distance comes so near to the next bucket
    far = exact + (ratio * (count - exact) + 1e-9).long()
    buckets = torch.where(near < exact, near, far.clamp_max(count - 1))  # (max_distance + 1,)  eq. (4)
    if bidirectional:
        return buckets[distances.abs().clamp_max(max_distance)] + count * (distances > 0)
    return buckets[(-distances).clamp(0, max_distance)]


def hierarchical_positions(table: Tensor, alpha: float, count: int) -> Tensor:
    """The first `count` rows of a position table extended from N to N^2 rows, eq. (5).

    Args:
        table: (N, d), the trained rows.
        alpha: weight of the coarse position, in (0, 1); the source has 0.4.
        count: rows wanted, at most N^2.

    Returns:
        (count, d) in the dtype of table; the first N rows are the table's own bits.

    Raises:
        ValueError: the table is not a matrix, alpha is not inside (0, 1), or count is above N^2.

    >>> hierarchical_positions(torch.tensor([[0.0], [2.0]]), 0.25, 4).T  # u = 0, 8/3
    tensor([[0.0000, 2.0000, 0.6667, 2.6667]])
    """
    if table.ndim != 2 or not 0 < alpha < 1:
        raise ValueError(
            f"hierarchical_positions needs a table (rows, features) and alpha inside (0, 1), e.g. 0.4; got "
            f"{tuple(table.shape)} and {alpha}"
        )
    size = table.shape[0]
    if not 0 <= count <= size**2:
        raise ValueError(
            f"{count} positions asked for; a table of {size} rows reaches {size}^2 = {size**2}; cut the text or "
            "train a longer table"
        )
    if count <= size:
        return table[:count]
    exact = table if table.dtype == torch.float64 else table.float()
    u = (exact - alpha * exact[:1]) / (1 - alpha)  # (N, d)
    t = torch.arange(size, count, device=table.device)
    beyond = alpha * u[t // size] + (1 - alpha) * u[t % size]  # (count - N, d)  eq. (5)
    return torch.cat([table, beyond.to(table.dtype)])


def _angles(positions: Tensor, dim: int, base: float) -> Tensor:
    """p w_i of eq. (1), (..., D/2): in float64, because at position 4,000 the last bits of float32 are 2e-4 radians."""
    if dim < 2 or dim % 2 or base <= 0:
        raise ValueError(f"dim must be a positive even number and base positive; got dim={dim}, base={base}")
    exact = torch.float32 if positions.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    frequencies = torch.arange(0, dim, 2, device=positions.device, dtype=exact).mul(-1 / dim)
    return positions[..., None].to(exact) * torch.pow(base, frequencies)


def _result_dtype(positions: Tensor) -> torch.dtype:
    return torch.float64 if positions.dtype == torch.float64 else torch.float32
