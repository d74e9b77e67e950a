r"""How far a model is from a straight line between examples, as a diagnostic and as a penalty without labels.

    gap = sqrt( E || f((a + b) / 2) - (f(a) + f(b)) / 2 ||^2 )      over pairs of different examples         (1)
    R = E || f(lam a + (1 - lam) b) - (lam f(a) + (1 - lam) f(b)) ||^2                                     (2)

(1) is 0 for affine f alone and measures what mixup claims to change; give it the probabilities, so that models compare.
(2) is mixup with the model's own predictions as targets: it needs no labels (interpolation consistency, for
semi-supervised training), costs a second forward pass, and is 0 for a constant f, so it stands beside a loss that
knows the labels. By default no gradient flows into the targets.

Source: kexue.fm/archives/5693 (mixup as the functional equation); (2): Verma et al., 2019, arXiv:1903.03825.
Shapes: B examples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from danlu.math.precision import wide, wide_dtype
from danlu.train.pairing import Mix, mix_inputs

__all__ = ["interpolation_loss", "linearity_gap"]


@torch.no_grad()
def linearity_gap(
    fn: Callable[[Tensor], Tensor], x: Tensor, pairs: int = 1000, generator: torch.Generator | None = None
) -> float:
    """Distance from a straight line halfway between examples, eq. (1).

    Args:
        fn: x (n, ...) -> (n, ...), for instance the probabilities of a model in evaluation mode.
        x: (B, ...) float examples, B >= 2.
        pairs: drawn uniformly among the pairs of two different examples.
        generator: source of randomness; None takes torch's own.

    Returns:
        The gap, >= 0, in the unit of fn's output.

    Raises:
        ValueError: fewer than two examples, or pairs < 1.

    >>> linearity_gap(lambda x: 2 * x + 1, torch.tensor([[1.0], [2.0], [4.0]]))
    0.0
    """
    if len(x) < 2 or pairs < 1:
        raise ValueError(f"linearity_gap needs two examples or more and pairs >= 1, got {len(x)} and {pairs}")
    home = generator.device if generator is not None else torch.device("cpu")
    first = torch.randint(len(x), (pairs,), generator=generator, device=home)
    second = torch.randint(len(x) - 1, (pairs,), generator=generator, device=home)
    second = second + (second >= first)  # uniform over the others
    first, second = first.to(x.device), second.to(x.device)
    ends = fn(x)  # (B, ...)
    ends = wide(ends)
    middle = fn((x[first] + x[second]) / 2) - (ends[first] + ends[second]) / 2  # (pairs, ...)
    return middle.square().sum().div(pairs).sqrt().item()  # eq. (1)


def interpolation_loss(fn: Callable[[Tensor], Tensor], x: Tensor, mix: Mix, detach_targets: bool = True) -> Tensor:
    """Squared distance of predictions on mixtures from mixtures of predictions, eq. (2).

    Args:
        fn: x (B, ...) -> (B, ...), probabilities or values; called twice.
        x: (B, ...) float examples, labelled or not.
        mix: of `draw_mix`.
        detach_targets: no gradient into the mixtures of predictions; False trains both sides.

    Returns:
        Scalar: the mean over the examples of the sum over the outputs.

    Raises:
        ValueError: mix belongs to another batch.

    >>> interpolation_loss(torch.square, torch.tensor([[0.0], [2.0]]), Mix(torch.tensor([0.5]), torch.tensor([1, 0])))
    tensor(1.)
    """
    if detach_targets:
        with torch.no_grad():
            targets = mix_inputs(fn(x), mix)
    else:
        targets = mix_inputs(fn(x), mix)
    apart = (fn(mix_inputs(x, mix)) - targets).to(wide_dtype(targets))
    return apart.square().sum() / max(len(x), 1)  # eq. (2)
