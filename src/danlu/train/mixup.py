r"""mixup: train on straight lines between examples, so that the model becomes more linear between them.

    x~ = lam x + (1 - lam) x[p],   y~ = lam y + (1 - lam) y[p],   lam ~ Beta(alpha, alpha)                 (1)
    L = lam l(f(x~), y) + (1 - lam) l(f(x~), y[p])                                                        (2)
    mean: L = sum_i (lam_i k_i l_i + (1 - lam_i) k'_i l'_i) / sum_i (lam_i k_i + (1 - lam_i) k'_i)        (3)
    eps = E min(lam, 1 - lam) = 1/2 - 1 / (4^alpha alpha B(alpha, alpha))                                 (4)

p pairs the examples of the batch. Where the model fits, y = f(x), and (1) asks for f(lam a + (1 - lam) b) = lam f(a) +
(1 - lam) f(b) for all pairs: a functional equation that only affine functions solve. So mixup is no augmentation but a
choice, among models of like quality, of the one nearest to a straight line (the post's reading; `linearity_gap`
measures it). It shrinks labels as well: with the roles of a pair exchanged so that lam >= 1/2, a share eps (4) goes
to the partner's class; where classes are balanced, the fair control is label smoothing of that strength.

alpha -> 0 is plain training, 1 draws lam uniformly, infinity is 1/2. (2) is exact for every loss. Where l is linear in
y, as cross-entropy is, it equals l(f(x~), y~); for squares it has the same gradient; ranking and survival losses have
(2) alone. Class weights too: torch divides by the weights for hard labels and not for soft ones. In (3) k is 1 where y
counts and k' where y[p] does: a token whose label is ignored in one row counts with the other row's share alone.

Accuracy on mixed batches means nothing: measure on clean ones. Batch norm sees mixed examples only. Mixup smooths
labels, so label smoothing or distillation on top of it makes a model that doubts too much.

Source: Zhang et al., 2017, arXiv:1710.09412; kexue.fm/archives/5693.
Shapes: B examples, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide
from danlu.train.adversarial_output import per_example
from danlu.train.pairing import Mix, check_size, draw_mix, mix_inputs

__all__ = ["MixedTarget", "Mixup", "mix_targets", "mixup", "mixup_loss", "smoothing_strength", "soft_targets"]


@dataclass(frozen=True)
class MixedTarget:
    """Both targets of each example and the weight of the first; for `mixup_loss` and `soft_targets`."""

    first: Tensor
    second: Tensor
    weight: Tensor


def mixup(
    x: Tensor,
    y: Tensor,
    alpha: float = 0.2,
    per_sample: bool = True,
    pair: str = "random",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, MixedTarget]:
    """Mixed inputs and their targets, eq. (1); train on `mixup_loss(model(x), target)`.

    Args:
        x: (B, ...) float inputs.
        y: (B, ...) class indices, probabilities or values.
        alpha: of Beta(alpha, alpha), >= 0; 0.1 to 0.4 is usual, 1 for small images.
        per_sample: a coefficient for each example (less variance); False: one for the batch, as in the paper's code.
        pair: see `draw_mix`.
        generator: source of randomness; None takes torch's own.

    Returns:
        x~ (B, ...) in the dtype of x, and the targets.

    Raises:
        ValueError: as `draw_mix` and `mix_inputs`.
        TypeError: x holds integers.

    >>> x, target = mixup(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), alpha=float("inf"), pair="roll")
    >>> x.tolist(), soft_targets(target, 2).tolist()
    ([[2.0], [2.0]], [[0.5, 0.5], [0.5, 0.5]])
    """
    mix = draw_mix(len(x), alpha, per_sample, pair, y if pair.endswith("class") else None, generator, x.device)
    return mix_inputs(x, mix), mix_targets(y, mix)


def mixup_loss(
    output: Tensor,
    target: MixedTarget,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The loss of both targets, weighted, eq. (2).

    Args:
        output: (B, ..., C) logits, or whatever loss_fn takes.
        target: of `mixup` or `mix_targets`.
        loss_fn: loss_fn(output, y) returns one loss for each item, (B, ...); a scalar will do where the whole batch has
            one coefficient. None is cross-entropy of (B, ..., C) logits with indices (B, ...) or probabilities.
        ignore_index: items with this class index do not count, eq. (3).
        reduction: "mean", "sum" or "none" over the items.

    Returns:
        Scalar, or (B, ...) for "none"; a scalar loss_fn's dtype, else float32 or better. 0 with nothing to count.

    Raises:
        ValueError: shapes do not fit, an unknown reduction, or a scalar loss_fn with a coefficient for each example.

    >>> half = MixedTarget(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
    >>> mixup_loss(torch.tensor([[0.0, 2.0]]), half)  # the mean of 2 + log(1 + e^-2) and log(1 + e^-2)
    tensor(1.1269)
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if loss_fn is None:
        losses = [_cross_entropy(output, y, ignore_index) for y in (target.first, target.second)]
    else:
        losses = [loss_fn(output, y) for y in (target.first, target.second)]
    if not losses[0].ndim:
        if target.weight.numel() != 1:
            raise ValueError(
                f"loss_fn returned one number, but each of the {len(target.weight)} examples has its own coefficient; "
                "let it return a loss for each (reduction='none'), or draw with per_sample=False"
            )
        lam = target.weight.to(losses[0].dtype)[0]
        return lam * losses[0] + (1 - lam) * losses[1]  # eq. (2)
    if len(losses[0]) != len(target.first):
        raise ValueError(f"loss_fn must return a loss for each of the {len(target.first)} examples, or one number; got "
                         f"{tuple(losses[0].shape)}")  # fmt: skip
    total, count = losses[0].new_zeros(()), losses[0].new_zeros(())
    lam = per_example(target.weight.to(losses[0].dtype), losses[0])  # (B, 1, ...)
    for loss, y, share in zip(losses, (target.first, target.second), (lam, 1 - lam), strict=True):
        share = share.expand_as(loss)
        if not y.is_floating_point() and y.shape == loss.shape:
            ignored = y == ignore_index
            loss, share = loss.masked_fill(ignored, 0.0), share.masked_fill(ignored, 0.0)
        total, count = total + share * loss, count + share  # (B, ...)
    if reduction != "mean":
        return total if reduction == "none" else total.sum()
    count = count.sum()
    return total.sum() / torch.where(count > 0, count, 1.0)  # eq. (3)


def mix_targets(y: Tensor, mix: Mix) -> MixedTarget:
    """The targets of both examples of each pair, with the weight of the first.

    Args:
        y: (B, ...) class indices, probabilities or values.
        mix: of `draw_mix`.

    Returns:
        The targets.

    Raises:
        ValueError: y has not B rows.

    >>> mix_targets(torch.tensor([5, 7]), Mix(torch.tensor([0.5]), torch.tensor([1, 0]))).second
    tensor([7, 5])
    """
    check_size(y, mix)
    return MixedTarget(y, y.index_select(0, mix.partner), mix.weight)


def soft_targets(target: MixedTarget, num_classes: int | None = None) -> Tensor:
    """One target instead of two: y~ of eq. (1).

    Args:
        target: of `mixup` or `mix_targets`.
        num_classes: C, for class indices; None for probabilities and values.

    Returns:
        (B, ..., C) for class indices (B, ...), in the dtype of the coefficients; else the shape and dtype of y.

    Raises:
        ValueError: class indices without num_classes, or an index outside [0, C).

    >>> soft_targets(MixedTarget(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75])), 3)
    tensor([[0.7500, 0.0000, 0.2500]])
    """
    first, second = target.first, target.second
    if not first.is_floating_point():
        if num_classes is None:
            raise ValueError(f"targets of {first.dtype} are class indices and need num_classes=; values must be float")
        if first.numel() and not 0 <= int(first.min()) <= int(first.max()) < num_classes:
            raise ValueError(
                f"class indices must lie in [0, {num_classes}), got {int(first.min())} to {int(first.max())}; for "
                "ignored labels use mixup_loss"
            )
        first, second = (F.one_hot(y.long(), num_classes).to(target.weight.dtype) for y in (first, second))
    return torch.lerp(second, first, per_example(target.weight.to(first.dtype), first))  # eq. (1)


def smoothing_strength(alpha: float) -> float:
    """The label smoothing that goes with mixup, eq. (4), for `F.cross_entropy(..., label_smoothing=)` of a control.

    Args:
        alpha: of Beta(alpha, alpha), >= 0.

    Returns:
        0 for alpha = 0, 1/4 for 1, towards 1/2.

    Raises:
        ValueError: alpha is negative or nan.

    >>> smoothing_strength(1.0)
    0.25
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}")
    if alpha == 0 or math.isinf(alpha):
        return 0.5 if alpha else 0.0
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    return 0.5 - math.exp(-alpha * math.log(4) - math.log(alpha) - log_beta)  # eq. (4)


class Mixup:
    """`mixup` with its settings: `x, target = mix(x, y)`."""

    def __init__(
        self,
        alpha: float = 0.2,
        per_sample: bool = True,
        pair: str = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        draw_mix(0, alpha, per_sample, pair, torch.zeros(0, dtype=torch.long), torch.Generator())  # refuses now
        self.alpha, self.per_sample, self.pair, self.generator = alpha, per_sample, pair, generator

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, MixedTarget]:
        return mixup(x, y, self.alpha, self.per_sample, self.pair, self.generator)


def _cross_entropy(output: Tensor, y: Tensor, ignore_index: int) -> Tensor:
    shape = output.shape[:-1] if not y.is_floating_point() else output.shape
    if output.ndim < 2 or y.shape != shape:
        raise ValueError(
            f"cross-entropy needs logits (B, ..., C) with class indices (B, ...) or probabilities (B, ..., C); got "
            f"{tuple(output.shape)} and {y.dtype} {tuple(y.shape)}. For other losses give loss_fn="
        )
    logits = wide(output).movedim(-1, 1)
    if y.is_floating_point():
        return F.cross_entropy(logits, y.to(logits.dtype).movedim(-1, 1), reduction="none")
    return F.cross_entropy(logits, y.long(), reduction="none", ignore_index=ignore_index)
