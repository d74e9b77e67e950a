r"""A replay buffer of Markov chains: negatives that go on where an earlier update left them.

    start = a stored chain with probability 1 - reinit, else uniform on the box                             (1)
    level = floor(256 (x - low) / (high - low)),   back: low + (level + u) (high - low) / 256, u ~ U(0, 1)  (2)

Chains of 20 to 60 steps are too short to reach the density from noise; restarted from the buffer they are long, and the
age (updates since a chain was noise) tells how long. Fresh chains under way are negatives as well, wider than the
model: in a large box with slow chains 5 % of them narrow the density that is learned. The oldest entry makes room.
Stored as uint8 (2), a pixel moves by at most 1/256 of the range, which in the released program is as much as the noise
of a step; float32 stores it exactly.

The contents are buffers of a module: they follow `.to(device)`, and its state_dict resumes them.

Source: Du and Mordatch, 2019, arXiv:1903.08689; kexue.fm/archives/6612.
Shapes: N chains (N, *shape).
"""

import torch
from torch import Tensor, nn

from danlu.generative._energy_gradient import Bounds, check_bounds

__all__ = ["ReplayBuffer"]


class ReplayBuffer(nn.Module):
    """`x, age = buffer.draw(n)`, run the sampler from x, `buffer.add(x, age)`.

    Args:
        capacity: entries, >= 1.
        shape: of one entry.
        bounds: (low, high) of the box, where fresh chains start.
        reinit: share of fresh chains in a draw, in [0, 1].
        dtype: torch.uint8, or a float dtype for exact storage.
    """

    data: Tensor
    age: Tensor
    added: Tensor

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        bounds: Bounds = (0.0, 1.0),
        reinit: float = 0.05,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        super().__init__()
        if capacity < 1 or not 0 <= reinit <= 1:
            raise ValueError(f"ReplayBuffer needs capacity >= 1 and reinit in [0, 1], got {capacity} and {reinit}")
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise ValueError(f"dtype must be torch.uint8 or a float dtype, got {dtype}")
        check_bounds("ReplayBuffer", bounds)
        self.capacity, self.shape, self.bounds, self.reinit = capacity, tuple(shape), bounds, reinit
        self.register_buffer("data", torch.zeros(capacity, *shape, dtype=dtype))
        self.register_buffer("age", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("added", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return min(int(self.added), self.capacity)

    @torch.no_grad()
    def draw(
        self, n: int, generator: torch.Generator | None = None, reinit: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Starts for n chains, eq. (1), and their ages.

        Args:
            n: chains.
            generator: source of all choices, on the device of the buffer.
            reinit: another share of fresh chains than the buffer's, None for that.

        Returns:
            x (n, *shape), float32 or the buffer's float dtype, and age (n,) int64, 0 for fresh chains. Drawn with
            replacement; all fresh while the buffer is empty.
        """
        device = self.data.device
        dtype = self.data.dtype if self.data.is_floating_point() else torch.float32
        low, high = self.bounds
        fresh = low + (high - low) * torch.rand(n, *self.shape, generator=generator, dtype=dtype, device=device)
        coin = torch.rand(n, generator=generator, device=device) < (self.reinit if reinit is None else reinit)
        if not len(self):
            return fresh, self.age.new_zeros(n)
        index = torch.randint(len(self), (n,), generator=generator, device=device)
        stored = self.data[index]
        if not stored.is_floating_point():
            u = torch.rand(stored.shape, generator=generator, device=device)
            stored = (low + (stored + u) * ((high - low) / 256)).clamp(low, high)  # eq. (2)
        keep = coin.view(-1, *[1] * len(self.shape))
        return torch.where(keep, fresh, stored), self.age[index].masked_fill(coin, 0)  # eq. (1)

    @torch.no_grad()
    def add(self, x: Tensor, age: Tensor | None = None) -> None:
        """Store chains, one update older than they were drawn; the oldest entries make room.

        Args:
            x: (N, *shape) inside the bounds; a graph is cut off.
            age: (N,) as `draw` gave it; None for fresh ones.

        Raises:
            ValueError: another shape, or points that are not finite or out of bounds.
        """
        low, high = self.bounds
        if x.shape[1:] != self.shape or x.ndim != len(self.shape) + 1:
            raise ValueError(f"this buffer holds entries {self.shape}, got x {tuple(x.shape)}; the batch comes first")
        if age is not None and age.shape != x.shape[:1]:
            raise ValueError(f"age needs one number for each of {len(x)} chains, got {tuple(age.shape)}")
        if x.numel() and not bool(((x >= low) & (x <= high)).all()):
            raise ValueError(
                f"ReplayBuffer stores points inside {self.bounds}, got values from {x.min().item():.4g} to "
                f"{x.max().item():.4g}; give the sampler the same bounds"
            )
        ages = self.age.new_zeros(len(x)) if age is None else age
        x, ages = x.detach()[-self.capacity :], ages[-self.capacity :]
        place = (self.added + torch.arange(len(x), device=self.data.device)) % self.capacity
        if not self.data.is_floating_point():
            x = ((x.float() - low) * (256 / (high - low))).floor().clamp(0, 255)  # eq. (2)
        self.data[place] = x.to(self.data.dtype)
        self.age[place] = ages.to(self.age) + 1
        self.added += len(x)

    @property
    def mean_age(self) -> float:
        """Mean number of updates since the stored chains were noise; nan while the buffer is empty."""
        return float(self.age[: len(self)].double().mean())

    def extra_repr(self) -> str:
        return f"{self.capacity}, {self.shape}, bounds={self.bounds}, reinit={self.reinit}, dtype={self.data.dtype}"
