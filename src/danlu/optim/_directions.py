r"""Random directions named by seeds, and what the values of a function along them say of its slope.

    forward       w_k = (f(x + e u_k) - f(x)) / (e n)                                       (1)
    both sides    w_k = (f(x + e u_k) - f(x - e u_k)) / (2 e n)                             (2)
    rank          f replaced by (number of smaller values + half of the equal ones) / (N - 1) - 1/2      (3)

The estimate of the gradient is sum_k w_k u_k over n directions; N values were tried.

Source: Salimans et al., 2017, arXiv:1703.03864 (ranks); Malladi et al., 2023, arXiv:2305.17333 (seeds).
Shapes: those of the parameters; d numbers in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["centred_ranks", "coefficients", "draw_seeds", "evaluate", "noise", "orthogonal_rows", "restore", "shift"]


def evaluate(
    loss_fn: Callable[[], Tensor | float],
    move: Callable[[int, float], None],
    back: Callable[[], None],
    epsilon: float,
    num_directions: int,
    kind: str,
) -> Tensor:
    """The values of f: (n, 2) on both sides of x, or (n + 1,) on one side with f(x) last; float64."""
    found, rewind = [], rewinder()
    for k in range(num_directions):
        for amount in (epsilon,) if kind == "forward" else (epsilon, -epsilon):
            rewind()
            move(k, amount)
            found.append(number(loss_fn()))
    if kind == "forward":
        back()
        rewind()
        found.append(number(loss_fn()))
    values = torch.tensor(found, dtype=torch.float64)
    return values if kind == "forward" else values.view(num_directions, 2)


def coefficients(values: Tensor, epsilon: float, kind: str, shaping: str) -> Tensor:
    """What each direction counts in the estimate, (n,)."""
    if kind == "forward":
        tried = values[:-1]
        gain = centred_ranks(tried) if shaping == "rank" else tried - values[-1]
        return gain / (epsilon * len(tried))  # eq. (1)
    tried = centred_ranks(values) if shaping == "rank" else values  # (n, 2)  eq. (3)
    return (tried[:, 0] - tried[:, 1]) / (2 * epsilon * len(tried))  # eq. (2)


def centred_ranks(values: Tensor) -> Tensor:
    """Ranks from -1/2 to 1/2, equal values sharing the mean of theirs."""
    flat = values.reshape(-1)
    below = (flat[:, None] > flat[None, :]).sum(dim=1) + 0.5 * ((flat[:, None] == flat[None, :]).sum(dim=1) - 1)
    return (below / max(len(flat) - 1, 1) - (0.5 if len(flat) > 1 else 0.0)).to(values.dtype).view_as(values)  # eq. (3)


def noise(params: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
    """The direction that a seed names, weight by weight."""
    generators: dict[torch.device, torch.Generator] = {}
    for p in params:
        if p.device not in generators:
            generators[p.device] = torch.Generator(p.device).manual_seed(seed)
        yield torch.randn(p.shape, generator=generators[p.device], device=p.device, dtype=p.dtype)


def shift(params: Sequence[Tensor], seed: int, amount: float) -> None:
    """Move the weights along the direction that a seed names."""
    for p, u in zip(params, noise(params, seed), strict=True):
        p.add_(u, alpha=amount)


def restore(params: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Give the weights their old bits."""
    for p, s in zip(params, saved, strict=True):
        p.copy_(s)


def draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
    """As many seeds, one for each direction."""
    return torch.randint(2**62, (count,), generator=generator).tolist()


def orthogonal_rows(params: Sequence[Tensor], count: int, generator: torch.Generator | None) -> Tensor:
    """(n, d) orthogonal rows of length sqrt(d), turned at random."""
    size = sum(p.numel() for p in params)
    if count > size:
        raise ValueError(f"there are no {count} orthogonal directions of {size} weights; lower num_directions")
    q, r = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).T * math.sqrt(size)


def rewinder() -> Callable[[], None]:
    """A function that takes torch's global generators back to where they are now."""
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def rewind() -> None:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return rewind


def number(value: Tensor | float) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"the value to move must be one number, got a tensor {tuple(value.shape)}; take its mean")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"the value to move is {result} at a point within epsilon; lower epsilon or bound the metric")
    return result
