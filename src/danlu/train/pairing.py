r"""Pairs of examples and their mixtures: who is mixed with whom, how much, and what becomes of padding.

    x~ = lam x + (1 - lam) x[p]                                                                            (1)
    lam ~ Beta(alpha, alpha)                                                                               (2)
    lam = 1/2 + s/2 sqrt(t / (r + t)),   r = U^{1/alpha},   t = (1 - r) c^2,   c = cos 2 pi V,   s = sign c   (3)
    mask~ = mask or mask[p],   x = 0 where a row has no token                                              (4)

(3) is exact for all alpha, needs two uniform numbers and takes a generator, which torch's Beta does not. (4): both rows
of a pair count up to the end of the longer one, and a row that has no token there adds nothing, where the vector of
[PAD] would be learned as if it were a word. Draws are made on the CPU, or where the generator lives, and then moved:
the same seed gives the same pairs on every device. Several processes want a generator each, of their own seed.

Source: Zhang et al., 2017, arXiv:1710.09412; text: Guo et al., 2019, arXiv:1905.08941; (3) is the polar form of
    Student's t with 2 alpha degrees of freedom (Bailey, 1994), carried over to (0, 1).
Shapes: B examples, T tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.train.adversarial_output import per_example

__all__ = ["PAIRS", "Mix", "draw_mix", "mix_inputs", "mix_masks"]

PAIRS = ("random", "roll", "same_class", "different_class")


@dataclass(frozen=True)
class Mix:
    """One draw: weight is lam, (B,) or (1,) float32; partner is p, (B,) int64."""

    weight: Tensor
    partner: Tensor


def draw_mix(
    size: int,
    alpha: float = 0.2,
    per_sample: bool = True,
    pair: str = "random",
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dominant: bool = False,
) -> Mix:
    """Coefficients and partners of a batch, eqs. (2) and (3).

    Args:
        size: B.
        alpha: of eq. (2), >= 0; 0 gives 1, inf gives 1/2.
        per_sample: a coefficient for each example; False: one for the batch.
        pair: "random" (a permutation), "roll" (each with the example before it, as torchvision has it), "same_class" (a
            permutation within each class), "different_class" (uniform over the other classes; an example without any
            stays with itself).
        labels: (B,) int64, needed by the last two.
        generator: source of randomness; None takes torch's own.
        device: of the result; None is the generator's, or the CPU.
        dominant: use max(lam, 1 - lam), for losses in which the roles differ.

    Returns:
        The draw.

    Raises:
        ValueError: alpha is negative or nan, an unknown pair, or labels are missing or no class indices (B,).

    >>> draw_mix(3, alpha=0.0, pair="roll")
    Mix(weight=tensor([1., 1., 1.]), partner=tensor([2, 0, 1]))
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}; 0 is plain training, inf always mixes by halves")
    if pair not in PAIRS:
        raise ValueError(f"pair must be one of {', '.join(PAIRS)}; got {pair!r}")
    home = generator.device if generator is not None else torch.device("cpu")
    weight = symmetric_beta(size if per_sample else 1, alpha, generator).float()
    weight = torch.maximum(weight, 1 - weight) if dominant else weight
    if pair == "roll":
        partner = torch.arange(size, device=home).roll(1)
    elif pair == "random":
        partner = torch.randperm(size, generator=generator, device=home)
    else:
        if labels is None or labels.shape != (size,) or labels.is_floating_point():
            got = "none" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(f"pair={pair!r} needs labels ({size},) of class indices, got {got}")
        partner = (_same_class if pair == "same_class" else _different_class)(labels.to(home), generator)
    target = device if device is not None else home
    return Mix(weight.to(target), partner.to(target))


def mix_inputs(x: Tensor, mix: Mix, mask: Tensor | None = None) -> Tensor:
    """Inputs, embeddings or hidden states mixed with their partners', eq. (1).

    Args:
        x: (B, ...) floats.
        mix: of `draw_mix`.
        mask: (B, T) bool, or any leading dimensions of x, True = keep; elsewhere a row counts as 0, whatever it
            holds, eq. (4).

    Returns:
        The shape and dtype of x. Coefficient 1, or an example that is its own partner, changes no bit of kept places.

    Raises:
        ValueError: shapes do not fit, or the mask is not bool.
        TypeError: x holds integers, such as token ids.

    >>> mix_inputs(torch.tensor([[0.0], [4.0]]), Mix(torch.tensor([0.75]), torch.tensor([1, 0])))
    tensor([[1.],
            [3.]])
    """
    if not x.is_floating_point():
        raise TypeError(
            f"a mixture of {x.dtype} has no meaning (token ids, class indices); mix what the embedding gives by "
            "output_mixed(embedding, mix), or images after .float()"
        )
    check_size(x, mix)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != x.shape[: mask.ndim]:
            raise ValueError(f"mask must be bool, True = keep, of leading dimensions of {tuple(x.shape)}; got "
                             f"{mask.dtype} {tuple(mask.shape)}")  # fmt: skip
        x = torch.where(mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim)), x, 0.0)
    x_wide = wide(x)
    return torch.lerp(x_wide.index_select(0, mix.partner), x_wide, per_example(mix.weight.to(x_wide.dtype), x_wide)).to(
        x.dtype
    )  # eq. (1)


def mix_masks(mask: Tensor, mix: Mix) -> Tensor:
    """The mask of mixed sequences: a place counts where either row has a token.

    Args:
        mask: (B, T) bool, True = keep.
        mix: of `draw_mix`.

    Returns:
        (B, T) bool.

    Raises:
        ValueError: the mask is not bool or has not B rows.

    >>> mix_masks(torch.tensor([[True, False], [True, True]]), Mix(torch.tensor([0.5]), torch.tensor([1, 0])))
    tensor([[True, True],
            [True, True]])
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True = keep; got {mask.dtype}; write mask.bool()")
    check_size(mask, mix)
    return mask | mask.index_select(0, mix.partner)  # eq. (4)


def symmetric_beta(size: int, alpha: float, generator: torch.Generator | None) -> Tensor:
    """(size,) float64 draws of Beta(alpha, alpha), eq. (3); 1 for alpha = 0."""
    device = generator.device if generator is not None else torch.device("cpu")
    u, v = torch.rand(2, size, generator=generator, device=device, dtype=torch.float64)
    if alpha == 0:
        return torch.ones_like(u)
    log_r = u.log() / alpha
    c = (2 * math.pi * v).cos()
    t = -log_r.expm1() * c.square()
    return 0.5 + 0.5 * c.sign() * (t / (log_r.exp() + t)).sqrt()  # eq. (3)


def _same_class(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniform permutation within each class."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]  # classes in order, members at random
    return torch.empty_like(by_class).scatter_(0, labels.argsort(stable=True), by_class)


def _different_class(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    lots = torch.rand(len(labels), len(labels), generator=generator, device=labels.device)
    lots = lots.masked_fill(labels[:, None] == labels, -1.0).fill_diagonal_(-0.5)  # oneself only where nobody is left
    return lots.argmax(1) if len(labels) else labels.long()


def check_size(x: Tensor, mix: Mix) -> None:
    if not x.ndim or len(x) != len(mix.partner):
        raise ValueError(f"the draw pairs {len(mix.partner)} examples along dimension 0, got a tensor "
                         f"{tuple(x.shape)}; draw anew for each batch")  # fmt: skip
