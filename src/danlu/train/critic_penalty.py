r"""Penalties on the slope of a GAN's critic: what keeps a critic without bound from growing without end.

    gp     E (|g(x^)| - 1)^2,          x^ = t x_real + (1 - t) x_fake,  t uniform in [0, 1]           (1)
    lp     E max(0, |g(x^)| - 1)^2     only what is too steep                                         (2)
    div    E |g(x^)|^6                                                                                (3)
    r1     E |g(x_real)|^2 / 2                                                                        (4)
    r2     E |g(x_fake)|^2 / 2                                                                        (5)

g(x) = ds/dx, s the critic's score, |.| the Euclidean norm over everything an example is made of. (1) belongs to the
game "wasserstein" with weight 10, (3) with weight 2: the best critic of E_p[s] - E_q[s] - 2 E |g|^6 exists, and no
Lipschitz bound is claimed. (4) lets the game come to rest where the plain one turns in circles for ever, which (1) does
not; the energy view of GANs asks for it, too (data at the bottom of a pit; a weight lambda on |g|^2 is 2 lambda here).
(5), or the sum of both with half the weight each, does the same.

The penalty is differentiated twice, and what `danlu.train.gradient_penalty` says of parts without a second derivative
holds; examples must not see each other (no batch norm in the critic). Norms are taken in float32 or better.

Source: (1) Gulrajani et al., 2017, arXiv:1704.00028; (3) Wu et al., 2017, arXiv:1712.01026; (4), (5) Mescheder et al.,
2018, arXiv:1801.04406, and kexue.fm/archives/6316; (2) is the one-sided form of (1).
Shapes: examples (N, ...), scores (N, ...) of any size an example.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from danlu.math.precision import wide
from danlu.train.gradient_penalty import gradient_penalty, refuse_what_derives_once

__all__ = ["critic_penalty", "mixed_examples", "slope_penalty"]

KINDS = ("gp", "lp", "div", "r1", "r2")


def critic_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor | None = None,
    kind: str = "gp",
    weight: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The weighted penalty of a critic on one pair of batches, eqs. (1) to (5), to be added to its loss.

    Args:
        critic: takes (N, ...) and gives the scores, (N, ...).
        real: (N, ...) real examples.
        fake: (N, ...) generated ones, with or without a graph, which is cut; not needed for "r1".
        kind: "gp", "lp", "div", "r1" or "r2".
        weight: usual are 10 for "gp", 2 for "div", 10 for "r1".
        generator: for the places x^.

    Returns:
        Scalar with its graph, float32 or better.

    Raises:
        ValueError: an unknown kind, no or unlike batches, or scores that do not depend on the critic's weights and the
            examples.
        RuntimeError: a part of the critic has no second derivative.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> x = torch.ones(2, 2)
    >>> critic_penalty(lambda x: x @ w, x, x), critic_penalty(lambda x: x @ w, x, kind="r1")  # (5 - 1)^2 and 25 / 2
    (tensor(16., grad_fn=<MulBackward0>), tensor(12.5000, grad_fn=<MulBackward0>))
    """
    if kind not in KINDS:
        raise ValueError(f"kind of a critic's penalty must be one of {', '.join(KINDS)}, got {kind!r}")
    if fake is None and kind != "r1":
        raise ValueError(f"critic_penalty(kind={kind!r}) needs generated examples; only 'r1' looks at real ones alone")
    if kind in ("r1", "r2"):
        x = real if kind == "r1" or fake is None else fake
    else:
        x = mixed_examples(real, real if fake is None else fake, generator)
    if not x.ndim or not len(x):
        raise ValueError(f"critic_penalty needs at least one example, got {tuple(x.shape)}")
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            scores = critic(x)
        if kind in ("r1", "r2"):
            penalty = gradient_penalty(_per_example(scores, x), x, form="sample")  # eq. (4), (5)
        elif kind == "div":
            penalty = slope_penalty(scores, x, 0.0, 6.0)  # eq. (3)
        else:
            penalty = slope_penalty(scores, x, 1.0, 2.0, one_sided=kind == "lp")  # eq. (1), (2)
        return weight * penalty


def slope_penalty(
    scores: Tensor, x: Tensor, target: float = 1.0, power: float = 2.0, one_sided: bool = False
) -> Tensor:
    """The mean over examples of | |g| - target |^power, the penalty of scores that are there already.

    Args:
        scores: (N, ...) computed from x, with their graph.
        x: (N, ...) examples that require a gradient.
        target: the length a slope should have, >= 0.
        power: >= 1.
        one_sided: count only slopes longer than the target.

    Returns:
        Scalar with its graph, float32 or better. At a slope of exactly 0 the norm's own derivative is taken as 0.

    Raises:
        ValueError: no example, unlike numbers of rows, a target below 0 or a power below 1, or scores that do not
            depend on x and on something that could be trained.
        RuntimeError: a part of what lies between has no second derivative.

    >>> w, x = torch.tensor([3.0, 4.0], requires_grad=True), torch.ones(2, 2, requires_grad=True)
    >>> slope_penalty(x @ w, x, target=0.0, power=6.0).item()  # 5^6
    15625.0
    """
    if not (target >= 0 and power >= 1):
        raise ValueError(f"slope_penalty needs target >= 0 and power >= 1, got {target} and {power}")
    total = _per_example(scores, x).sum()
    linked = total.requires_grad and x.requires_grad
    (slope,) = torch.autograd.grad(total, x, create_graph=True, allow_unused=True) if linked else (None,)
    if slope is None:
        raise ValueError(
            f"the scores do not depend on x {tuple(x.shape)}; compute them from this tensor, with requires_grad set"
        )
    refuse_what_derives_once([slope])
    square = wide(slope).flatten(1).square().sum(1)  # (N,)
    if not target and power >= 2:
        return square.pow(power / 2).mean()  # smooth at 0
    length = torch.linalg.vector_norm(wide(slope).flatten(1), dim=1)
    over = length - target
    return (over.clamp_min(0) if one_sided else over.abs()).pow(power).mean()


def mixed_examples(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One example on the line between each real and each generated one, x^ of eq. (1).

    Args:
        real: (N, ...).
        fake: (N, ...), the same shape.
        generator: for t, one number an example.

    Returns:
        (N, ...) without a graph, in the wider dtype of the two.

    Raises:
        ValueError: the shapes differ.

    >>> mixed_examples(torch.ones(2, 3), torch.ones(2, 3)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if real.shape != fake.shape or not real.ndim:
        raise ValueError(
            f"mixing needs real and fake examples of one shape (N, ...); got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}; draw as many fakes as there are real examples"
        )
    real, fake = real.detach(), fake.detach()
    dtype = torch.promote_types(real.dtype, fake.dtype)
    t = torch.rand(len(real), generator=generator, device=real.device)
    t = t.to(dtype).reshape(-1, *[1] * (real.ndim - 1))
    return t * real.to(dtype) + (1 - t) * fake.to(dtype)


def _per_example(scores: Tensor, x: Tensor) -> Tensor:
    """(N,) the sum of each example's scores."""
    if not x.ndim or not len(x) or scores.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"a slope an example needs scores (N, ...) of x (N, ...) with N >= 1; got {tuple(scores.shape)} and "
            f"{tuple(x.shape)}; a critic must not average over the batch"
        )
    return wide(scores).flatten(1).sum(1) if scores.ndim > 1 else wide(scores)
