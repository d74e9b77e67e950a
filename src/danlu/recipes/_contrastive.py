"""What the recipes on FlatNCE share: cross-entropy on scores, scores rounded to bfloat16, the error of a pull."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.losses import Scores

__all__ = ["cross_entropy", "pull_error", "rounded"]


def cross_entropy(s: Scores) -> Tensor:
    """InfoNCE as everybody computes it."""
    scores = s.scores if s.mask is None else s.scores.masked_fill(~s.mask, -torch.inf)
    return F.cross_entropy(scores, s.target)


def rounded(s: Scores) -> Scores:
    """The scores as a product in bfloat16 would leave them; the losses go on from there in that type."""
    return s._replace(scores=s.scores.bfloat16())


def pull_error(loss: Callable[[Scores], Tensor], reference: Callable[..., Tensor], s: Scores) -> float:
    """Relative error of a loss's gradient at the positives against a reference in float64, median over the anchors.

    Both see the same scores, in the type they come in; a loss that is scaled by itself is scaled back by the caller.
    """
    held = s.scores.detach()

    def pull(function: Callable[[Scores], Tensor], scores: Tensor) -> Tensor:
        scores = scores.requires_grad_()
        (g,) = torch.autograd.grad(function(s._replace(scores=scores)), scores)
        return g.double().gather(1, s.target[:, None])[:, 0]

    exact = pull(lambda t: reference(*t), held.double())
    return ((pull(loss, held.clone()) - exact) / exact.clamp_max(-1e-300)).abs().median().item()
