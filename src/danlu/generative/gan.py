r"""One step of any GAN: a critic's, a generator's, with whatever pair of losses and whatever penalty.

    critic      L_s = loss(s(x), s(G(z)))  +  penalty(s, x, G(z)),      G held                                (1)
    generator   L_G = loss.generator(s(G(z))),                          s held                                (2)

s(x) is the critic's score, x real examples, G(z) generated ones. A loss is a name or a record of `danlu.losses.gan`
(also from `ratio_game`, `power_game`, `least_squares_game`), an `FGANLoss` for any f-divergence, or any object with the
same two calls. What is held gets no gradient: in (1) the fakes are cut off, in (2) the critic's weights are switched
off while its backward pass runs, so that nothing is left in their .grad. A penalty is a function of (critic, real,
fake), weight included: `partial(critic_penalty, kind="gp", weight=10.0)`.

The optimisers are the caller's, and so are the number of critic steps for one of the generator (one in the post on
f-GAN) and their order. The energy view says: no momentum for the generator, which runs past the nearest pit. Batch norm
in the critic sees real and generated batches apart, and also moves its statistics in (2).

Source: kexue.fm/archives/6016, 6316, 7210 (the losses); the steps are Goodfellow et al., 2014, arXiv:1406.2661.
Shapes: examples (N, ...), scores of any shape; the two batches may differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from danlu.losses.gan import GanGame, gan_critic_loss, gan_generator_loss

__all__ = [
    "AdversarialLoss",
    "CriticStep",
    "critic_objective",
    "critic_step",
    "generator_objective",
    "generator_step",
    "held",
]

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]


class AdversarialLoss(Protocol):
    """What a loss object offers: its call on real and generated scores, and `.generator` on generated ones."""

    def __call__(self, real: Tensor, fake: Tensor, /) -> Tensor: ...

    def generator(self, fake: Tensor, /) -> Tensor: ...


Loss = str | GanGame | AdversarialLoss


@dataclass(frozen=True)
class CriticStep:
    """What a critic's step found, without graphs: loss without the penalty, penalty, and the scores before the step."""

    loss: Tensor
    penalty: Tensor
    real_scores: Tensor
    fake_scores: Tensor


def critic_objective(
    critic: nn.Module, real: Tensor, fake: Tensor, loss: Loss = "non_saturating", penalty: Penalty | None = None
) -> Tensor:
    """What the critic descends, eq. (1), for a loop of your own.

    Args:
        critic: gives scores of examples.
        real: (N, ...) real examples.
        fake: (M, ...) generated ones; cut off here.
        loss: a game by name, a GanGame, or an object like FGANLoss.
        penalty: function of (critic, real, fake), or None.

    Returns:
        Scalar with the critic's graph.

    Raises:
        ValueError: an empty batch, or what the loss and the penalty say.
        TypeError: loss is none.

    >>> import torch
    >>> critic = nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(critic.weight), nn.init.zeros_(critic.bias)
    >>> critic_objective(critic, torch.ones(2, 1), torch.zeros(3, 1)).item()  # 2 log 2
    1.3862943649291992
    """
    total, _ = _critic_parts(critic, real, fake, loss, penalty)
    return total


def generator_objective(critic: nn.Module, fake: Tensor, loss: Loss = "non_saturating") -> Tensor:
    """What the generator descends, eq. (2), for a loop of your own; run backward() inside `held(critic)`.

    Args:
        critic: gives scores of examples.
        fake: (M, ...) generated examples with their graph.
        loss: as for the critic.

    Returns:
        Scalar with the generator's graph, and the critic's unless it is held.

    Raises:
        ValueError: an empty batch, or fakes without a graph.
        TypeError: loss is none.

    >>> import torch
    >>> critic = nn.Linear(1, 1)
    >>> fake = torch.zeros(1, 1, requires_grad=True)
    >>> torch.equal(generator_objective(critic, fake, "wasserstein"), -critic(fake).mean())
    True
    """
    if not fake.requires_grad:
        raise ValueError(
            "the fakes have no graph, so no generator would learn; compute them from the generator outside no_grad and "
            "without detach()"
        )
    _check_batches(fake=fake)
    scores = critic(fake)
    return _losses(loss)[1](scores)  # eq. (2)


def critic_step(
    critic: nn.Module,
    optimizer: Optimizer,
    real: Tensor,
    fake: Tensor,
    loss: Loss = "non_saturating",
    penalty: Penalty | None = None,
) -> CriticStep:
    """One step of the critic, eq. (1): zero_grad, backward, step.

    Args:
        critic: gives scores of examples; its weights are those of the optimizer.
        optimizer: of the critic alone.
        real: (N, ...) real examples.
        fake: (M, ...) generated ones; cut off here.
        loss: a game by name, a GanGame, or an object like FGANLoss.
        penalty: function of (critic, real, fake), or None.

    Returns:
        What was found.

    Raises:
        ValueError: an empty batch, or what the loss and the penalty say.
        TypeError: loss is none.

    >>> import torch
    >>> critic = nn.Linear(1, 1)
    >>> sgd = torch.optim.SGD(critic.parameters(), 0.5)
    >>> _ = nn.init.zeros_(critic.weight), nn.init.zeros_(critic.bias)
    >>> critic_step(critic, sgd, torch.ones(2, 1), -torch.ones(2, 1), "wasserstein").loss.item()
    0.0
    >>> critic.weight.item()  # along 0.5 (E_p[x] - E_q[x])
    1.0
    """
    optimizer.zero_grad()
    total, found = _critic_parts(critic, real, fake, loss, penalty)
    total.backward()
    optimizer.step()
    return found


def generator_step(critic: nn.Module, optimizer: Optimizer, fake: Tensor, loss: Loss = "non_saturating") -> Tensor:
    """One step of the generator, eq. (2): zero_grad, backward through a held critic, step.

    Args:
        critic: gives scores of examples; neither its weights nor their .grad change.
        optimizer: of the generator alone.
        fake: (M, ...) generated examples with their graph.
        loss: the one of the critic.

    Returns:
        The loss without its graph.

    Raises:
        ValueError: an empty batch, or fakes without a graph.
        TypeError: loss is none.

    >>> import torch
    >>> theta = nn.Parameter(torch.zeros(1, 1))
    >>> critic = nn.Linear(1, 1)
    >>> _ = nn.init.constant_(critic.weight, 2.0)
    >>> _ = generator_step(critic, torch.optim.SGD([theta], 0.5), theta + 0, "wasserstein")
    >>> theta.item()  # uphill on the score, slope 2
    1.0
    """
    optimizer.zero_grad()
    with held(critic):
        value = generator_objective(critic, fake, loss)
        value.backward()
    optimizer.step()
    return value.detach()


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Inside the block (run backward there too) the module's weights take no gradient; after it those that did do so.

    Args:
        module: a critic or a generator.

    >>> critic = nn.Linear(1, 1)
    >>> with held(critic):
    ...     print(critic.weight.requires_grad)
    False
    >>> critic.weight.requires_grad
    True
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in weights:
            p.requires_grad_(False)
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)


def _critic_parts(
    critic: nn.Module, real: Tensor, fake: Tensor, loss: Loss, penalty: Penalty | None
) -> tuple[Tensor, CriticStep]:
    _check_batches(real=real, fake=fake)
    fake = fake.detach()
    real_scores, fake_scores = critic(real), critic(fake)
    value = _losses(loss)[0](real_scores, fake_scores)  # eq. (1)
    extra = value.new_zeros(()) if penalty is None else penalty(critic, real, fake)
    return value + extra, CriticStep(value.detach(), extra.detach(), real_scores.detach(), fake_scores.detach())


def _losses(loss: Loss) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The critic's and the generator's function of scores."""
    if isinstance(loss, str | GanGame):
        return lambda real, fake: gan_critic_loss(real, fake, loss), lambda fake: gan_generator_loss(fake, loss)
    if not (callable(loss) and callable(getattr(loss, "generator", None))):
        raise TypeError(
            f"a GAN's loss is a name of danlu.losses.gan, a GanGame, or an object with loss(real, fake) and "
            f"loss.generator(fake) such as FGANLoss('kl'); got {type(loss).__name__}"
        )
    return loss, loss.generator


def _check_batches(**batches: Tensor) -> None:
    for name, x in batches.items():
        if not x.ndim or not len(x):
            raise ValueError(f"a GAN's step needs at least one {name} example, got {tuple(x.shape)}")
