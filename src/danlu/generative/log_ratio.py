r"""A critic fitted to log p/q of two samples: a small perceptron and the loop that trains it.

    v = argmin over v of  E_P[softplus(-v)] + E_Q[softplus(v)]  =  log p / q                               (1)

(1) is logistic regression with equal classes; any f-divergence's bound has the same optimum and may be taken instead.
The learning rate falls to 0 along a cosine, gradients are clipped to length 10.

Source: Nguyen, Wainwright and Jordan, 2010, arXiv:0809.0853; kexue.fm/archives/6016.
Shapes: n examples of P (n, ...), m of Q (m, ...); D features.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from danlu.losses.f_gan import f_gan_critic_loss
from danlu.math.f_convex import Elementwise, FDivergence
from danlu.math.f_table import as_f_divergence

__all__ = ["fit_log_ratio", "log_ratio_critic"]


def fit_log_ratio(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    divergence: str | FDivergence | Elementwise = "gan",
    steps: int = 1_000,
    batch_size: int = 256,
    lr: float = 2e-3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The critic after training, eq. (1), in eval mode.

    Args:
        critic: gives v (N,) or (N, 1) of examples (N, ...); changed in place.
        real: (n, ...) examples of P.
        fake: (m, ...) examples of Q.
        divergence: whose bound is climbed; "gan" is (1).
        steps: of Adam.
        batch_size: examples of each sample in a step, with replacement.
        lr: at the start.
        generator: for the batches.

    Returns:
        The critic.

    Raises:
        ValueError: an empty sample, or numbers out of range.

    >>> seed = torch.Generator().manual_seed(0)
    >>> x, y = torch.tensor([[0.0], [1.0], [1.0], [1.0]]), torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    >>> critic = fit_log_ratio(nn.Linear(1, 1), x, y, steps=300, lr=0.05, generator=seed)
    >>> abs(critic(torch.ones(1, 1)).item() - 1.0986) < 0.2  # three to one
    True
    """
    if not (len(real) and len(fake)):
        raise ValueError(f"fit_log_ratio needs examples of both, got {tuple(real.shape)} and {tuple(fake.shape)}")
    if not (steps >= 1 and batch_size >= 1 and lr > 0):
        raise ValueError(f"steps and batch_size must be >= 1 and lr > 0, got {steps}, {batch_size} and {lr}")
    record = as_f_divergence(divergence)
    adam = torch.optim.Adam(critic.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    device = None if generator is None else generator.device
    critic.train()
    for _ in range(steps):
        a, b = (
            sample[torch.randint(len(sample), (batch_size,), generator=generator, device=device).to(sample.device)]
            for sample in (real, fake)
        )
        adam.zero_grad()
        with torch.enable_grad():
            f_gan_critic_loss(critic(a), critic(b), record).backward()  # eq. (1)
        nn.utils.clip_grad_norm_(critic.parameters(), 10.0)
        adam.step()
        schedule.step()
    return critic.eval()


def log_ratio_critic(
    example: Tensor, width: int = 64, layers: int = 2, generator: torch.Generator | None = None
) -> nn.Module:
    """A fresh perceptron for examples like these, its inputs flattened, centred and scaled by their spread.

    Args:
        example: (N, ...) examples of both kinds, float32 or float64, N >= 1.
        width: of the hidden layers.
        layers: hidden ones, >= 1.
        generator: for the weights.

    Returns:
        The module, (N, ...) to (N, 1), in the dtype of the examples.

    Raises:
        ValueError: no examples, or width or layers below 1.

    >>> log_ratio_critic(torch.randn(5, 2, 3))(torch.randn(4, 2, 3)).shape
    torch.Size([4, 1])
    """
    if example.ndim < 1 or not len(example) or width < 1 or layers < 1:
        raise ValueError(
            f"log_ratio_critic needs examples (N, ...) and width and layers >= 1, got {tuple(example.shape)}, {width} "
            f"and {layers}"
        )
    flat = example.detach().reshape(len(example), -1)
    parts: list[nn.Module] = [_Standard(flat)]
    for before, after in pairwise([flat.shape[1], *[width] * layers, 1]):
        linear = nn.utils.skip_init(nn.Linear, before, after, dtype=flat.dtype, device=flat.device)
        nn.init.kaiming_uniform_(linear.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(linear.bias, -(before**-0.5), before**-0.5, generator=generator)
        parts += [linear, nn.SiLU()]
    return nn.Sequential(*parts[:-1])


class _Standard(nn.Module):
    """Inputs flattened, centred and scaled by constants."""

    mean: Tensor
    scale: Tensor

    def __init__(self, flat: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", flat.mean(0))
        scale = flat.std(0, correction=0)
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) / self.scale if x.ndim > 1 else (x[:, None] - self.mean) / self.scale
