r"""A fair memory of all that a generator ever made: what its critic should not forget.

    each of the t examples added so far is stored with probability  min(1, capacity / t)                   (1)

A critic that sees only today's fakes raises the energy where they are, forgets the places it raised before, and the
generator may return there: the two turn round the modes. With a share of old fakes in each of its batches the critic
answers the average of the generator's past, as in fictitious play, and old pits stay filled. The generator is still
judged on its own, new fakes.

(1) is reservoir sampling: example t takes a random one of the places with probability capacity / t. A replay buffer
that drops the oldest remembers the last `capacity` instead (`danlu.generative.ReplayBuffer`).

Source: the history of refined images of Shrivastava et al., 2016, arXiv:1612.07828, there with random replacement;
reservoir: Vitter, 1985, doi:10.1145/3147.3165; for the energy of a GAN kexue.fm/archives/6316.
Shapes: examples (N, ...).
"""

import torch
from torch import Tensor, nn

__all__ = ["SampleHistory"]


class SampleHistory(nn.Module):
    """`fake = history.mix(fake)` before the critic's step: some rows old ones, and the new ones remembered.

    Args:
        capacity: examples kept, >= 1.
        shape: of one example.
        share: of old examples in a mixed batch, in [0, 1].
        dtype: of the storage.
    """

    data: Tensor
    added: Tensor

    def __init__(
        self, capacity: int, shape: tuple[int, ...], share: float = 0.5, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if capacity < 1 or not 0 <= share <= 1:
            raise ValueError(f"SampleHistory needs capacity >= 1 and share in [0, 1], got {capacity} and {share}")
        self.capacity, self.shape, self.share = capacity, tuple(shape), share
        self.register_buffer("data", torch.zeros(capacity, *shape, dtype=dtype))
        self.register_buffer("added", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return min(int(self.added), self.capacity)

    @torch.no_grad()
    def add(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Remember the rows of x with the chance of eq. (1).

        Args:
            x: (N, *shape), with or without a graph.
            generator: for the places.

        Raises:
            ValueError: rows of another shape.
        """
        if x.shape[1:] != self.shape or not x.ndim:
            raise ValueError(f"SampleHistory holds examples of shape {self.shape}, got a batch {tuple(x.shape)}")
        device = self.data.device
        number = int(self.added) + torch.arange(len(x), device=device)  # of examples before this one
        u = torch.rand(len(x), generator=generator, device=device, dtype=torch.float64)
        place = torch.where(number < self.capacity, number, (u * (number + 1)).long())  # eq. (1)
        rows = torch.arange(len(x), device=device)[place < self.capacity]
        place = place[place < self.capacity]
        last = torch.full((self.capacity,), -1, device=device).scatter_reduce(0, place, rows, "amax")  # the later one
        taken = last >= 0
        self.data[taken] = x.detach().to(self.data)[last[taken]]
        self.added += len(x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n stored examples, with replacement.

        Args:
            n: >= 0.
            generator: for the choice.

        Returns:
            (n, *shape).

        Raises:
            ValueError: nothing is stored yet.
        """
        if not len(self):
            raise ValueError("SampleHistory is empty; add() generated examples first")
        return self.data[torch.randint(len(self), (n,), generator=generator, device=self.data.device)]

    def mix(self, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The batch for the critic: a share of its rows replaced by old examples; then the new ones are remembered.

        Args:
            fake: (N, *shape) generated examples.
            generator: for the places and the choice.

        Returns:
            (N, *shape) without a graph, in the dtype of fake; all new as long as nothing is stored.

        Raises:
            ValueError: rows of another shape.
        """
        new = fake.detach()
        old = round(self.share * len(new)) if len(self) else 0
        mixed = torch.cat([new[: len(new) - old], self.draw(old, generator).to(new)]) if old else new
        self.add(new, generator)
        return mixed

    def forward(self, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.mix(fake, generator)
