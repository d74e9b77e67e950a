r"""Virtual adversarial training: predictions should not move where the input moves a little in the worst way.

    D(d)  = sum KL(p(x), p(x + d)),   p(x) held constant                                 (1)
    u    <- normalise( dD/dd at d = xi u ),   `steps` times, u ~ N(0, 1) first           (2)
    L_vds = mean KL(p(x), p(x + epsilon u))                                              (3)

No label occurs, so (3) is a loss for labelled and unlabelled rows alike: L = CE on the labelled rows + L_vds on others.
D is 0 at d = 0 and so is its slope, hence D is about d'Hd / 2 there, dD/dd about H d, and (2) is a power iteration
towards the top eigenvector of H, one for each example. (1) takes the sum, so that no example's share vanishes.

Where the sources differ: the post's program moves the embedding matrix, with xi = 10, epsilon = 1, one step and one
norm over the matrix (most rows of the start are not in the batch, so xi is long). The papers move the layer's output,
a delta for each example: the default here, `vat_output_loss`. For the matrix hand `vat_loss` a delta of one example:
    vat_loss(lambda d: functional_call(model, {"embed.weight": W + d[0]}, ids), W[None], xi=10.0, epsilon=1.0)
xi defaults to epsilon: a short xi follows H more closely, but in half precision what it moves is rounded away.

Dropout. With another mask in every pass D is not 0 at d = 0, and u follows the masks' difference instead of H.
`same_dropout` gives all passes the same random numbers, so that (3) measures the move alone; R-Drop measures the
masks. Batch norm: `VAT` keeps its statistics still in all passes but the last; the loss is that of any rows, so a
batch without labels may be another one. `entropy_loss` is the usual companion: predictions without doubt.

Source: Miyato et al., 2017, arXiv:1704.03976; 2016, arXiv:1605.07725 (text); kexue.fm/archives/7466. Entropy
minimisation: Grandvalet and Bengio, 2004.
Shapes: B examples; logits (B, ..., C), mask (B, ...); layer output (B, T, D) or (B, ...).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype
from danlu.math.reduce import reduce_loss
from danlu.train.adversarial import check_epsilon
from danlu.train.adversarial_output import keep_positions, lengthen, output_perturbed, outputs_through
from danlu.train.freelb import NoiseSource, find_layer, forked, last_pass_counts
from danlu.train.r_drop import Divergence, kl_categorical

__all__ = ["VAT", "entropy_loss", "vat_loss", "vat_output_loss"]


def vat_loss(
    logits_fn: Callable[[Tensor], Tensor],
    like: Tensor,
    epsilon: float = 1.0,
    xi: float | None = None,
    steps: int = 1,
    mask: Tensor | None = None,
    delta_mask: Tensor | None = None,
    divergence: Divergence | None = None,
    same_dropout: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far the prediction moves when its input moves by epsilon in the worst direction, eq. (3).

    Args:
        logits_fn: delta -> logits (B, ..., C) of the moved input; called steps + 2 times, first with zeros.
        like: what delta looks like, (B, ...): its shape, dtype and device; the values do not matter.
        epsilon: length of each example's delta, > 0.
        xi: length of the trial move of eq. (2), > 0; None: epsilon.
        steps: of the power iteration, >= 1.
        mask: bool, the shape of the logits without C, True = keep: which predictions count (a tagger's real tokens).
        delta_mask: bool, the leading dimensions of delta, True = may move; None: all may.
        divergence: of (target, logits), one value an item; None: `kl_categorical`; `kl_bernoulli` for yes-or-no labels.
        same_dropout: every pass draws the same random numbers from torch's global stream, which ends where one pass
            would have left it.
        generator: the source of the start of u; None: a seed drawn from torch's global stream.

    Returns:
        Scalar with its graph, nats, the mean over the kept items.

    Raises:
        ValueError: epsilon or xi is not > 0, steps < 1, a mask that does not fit.

    >>> x, w = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 0.0], [4.0, 0.0]])  # logits (3 a + 4 b, 0)
    >>> loss = vat_loss(lambda d: (x + d) @ w, x, epsilon=0.2, generator=torch.Generator().manual_seed(0))
    >>> worst = [kl_categorical(x @ w, x @ w + torch.tensor([[s, 0.0]])) for s in (1.0, -1.0)]  # along w: 0.2 * 5
    >>> bool((loss - torch.cat(worst)).abs().min() < 1e-6)
    True
    """
    check(epsilon, xi, steps, "vat_loss")
    source = NoiseSource(generator)
    with forked(same_dropout):
        target = logits_fn(torch.zeros_like(like, requires_grad=False)).detach()
    return divergence_at_worst(
        lambda deltas: logits_fn(deltas[0].to(like.dtype)), target, [like], epsilon, xi, steps, mask, delta_mask,
        divergence, same_dropout, source,
    )  # fmt: skip


def vat_output_loss(
    logits_fn: Callable[[], Tensor],
    module: nn.Module,
    epsilon: float = 1.0,
    xi: float | None = None,
    steps: int = 1,
    mask: Tensor | None = None,
    delta_mask: Tensor | None = None,
    divergence: Divergence | None = None,
    same_dropout: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`vat_loss` where a layer's output is what moves: `vat_output_loss(lambda: model(ids), model.embed)`.

    Args:
        logits_fn: computes the logits (B, ..., C) of the current batch through `module`; called steps + 2 times.
        module: the layer whose output moves, such as the embedding; it returns one tensor with the examples along
            dimension 0. Called several times in a pass, each of its outputs gets a delta of that length.
        epsilon: length of each example's delta, > 0.
        xi: length of the trial move of eq. (2), > 0; None: epsilon.
        steps: of the power iteration, >= 1.
        mask: bool, the shape of the logits without C, True = keep: which predictions count.
        delta_mask: bool, the leading dimensions of the layer's output, such as the real tokens (B, T); None: all may
            move. What the prediction does not see, such as padding, stays in any case once u is a gradient.
        divergence: of (target, logits), one value an item; None: `kl_categorical`.
        same_dropout: every pass draws the same random numbers from torch's global stream.
        generator: the source of the start of u; None: a seed drawn from torch's global stream.

    Returns:
        Scalar with its graph, nats, the mean over the kept items.

    Raises:
        ValueError: epsilon or xi is not > 0, steps < 1, a mask that does not fit, logits that do not go through the
            module.
        TypeError: the module returns something else than one tensor.

    >>> layer, w = nn.Identity(), torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    >>> x = torch.tensor([[0.0, 0.0]])
    >>> vat_output_loss(lambda: layer(x) @ w, layer, 0.2)  # 1/2, 1/2 against odds of e to the 0.2 * 5
    tensor(0.1201)
    """
    check(epsilon, xi, steps, "vat_output_loss")
    source = NoiseSource(generator)
    outputs: list[Tensor] = []

    def watched(_: int, x: Tensor) -> Tensor:
        outputs.append(x.detach())
        return x

    with forked(same_dropout), outputs_through(module, watched):
        target = logits_fn().detach()

    def logits_at(deltas: Sequence[Tensor]) -> Tensor:
        with output_perturbed(module, deltas):
            return logits_fn()

    return divergence_at_worst(
        logits_at, target, outputs, epsilon, xi, steps, mask, delta_mask, divergence, same_dropout, source
    )


def entropy_loss(logits: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """The entropy of the predictions: to minimise it on unlabelled rows draws them away from the class borders.

    Args:
        logits: (..., C), any float dtype; -inf rules a class out.
        mask: (...) bool, True = keep.
        reduction: "mean" over the kept items, "sum" or "none".

    Returns:
        Scalar, or (...) for "none", nats in [0, log C], float32 or better.

    Raises:
        ValueError: a mask that does not fit, an unknown reduction.

    >>> entropy_loss(torch.zeros(3, 2))  # log 2
    tensor(0.6931)
    """
    log_p = wide(logits).log_softmax(dim=-1)
    items = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)
    return reduce_loss(items, reduction, mask)


class VAT:
    """`vat_output_loss` on the model's embedding layer: `loss + VAT(model).loss(lambda: model(unlabelled))`.

    layer: "embeddings" (`get_input_embeddings()`, or the only nn.Embedding there is), a module's dotted name, or the
    module. Batch norm counts the batch once, in the last pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module = "embeddings",
        epsilon: float = 1.0,
        xi: float | None = None,
        steps: int = 1,
        divergence: Divergence | None = None,
        same_dropout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check(epsilon, xi, steps, "VAT")
        self.model, self.layer = model, find_layer(model, layer)
        self.epsilon, self.xi, self.steps, self.divergence = epsilon, xi, steps, divergence
        self.same_dropout, self.generator = same_dropout, generator

    def loss(
        self, logits_fn: Callable[[], Tensor], mask: Tensor | None = None, delta_mask: Tensor | None = None
    ) -> Tensor:
        """The loss with its graph, as `vat_output_loss`."""
        return vat_output_loss(
            last_pass_counts(self.model, logits_fn, self.steps + 2), self.layer, self.epsilon, self.xi, self.steps,
            mask, delta_mask, self.divergence, self.same_dropout, self.generator,
        )  # fmt: skip


def divergence_at_worst(
    logits_at: Callable[[Sequence[Tensor]], Tensor],
    target: Tensor,
    likes: Sequence[Tensor],
    epsilon: float,
    xi: float | None,
    steps: int,
    mask: Tensor | None,
    delta_mask: Tensor | None,
    divergence: Divergence | None,
    same_dropout: bool,
    source: NoiseSource,
) -> Tensor:
    """Eqs. (2) and (3) for deltas that look like `likes`."""
    kl = divergence or kl_categorical
    moves = []
    for x in likes:
        dtype = wide_dtype(x)
        moves.append(torch.randn(x.shape, generator=source.on(x.device), device=x.device, dtype=dtype))
    for _ in range(steps):
        trial = [lengthen(keep_positions(m, delta_mask), xi or epsilon).requires_grad_() for m in moves]
        with forked(same_dropout):
            total = reduce_loss(kl(target, logits_at(trial)), "sum", mask)  # eq. (1)
        moves = gradients(total, trial)  # eq. (2)
    deltas = [lengthen(keep_positions(m, delta_mask), epsilon) for m in moves]
    return reduce_loss(kl(target, logits_at(deltas)), "mean", mask)  # eq. (3)


def gradients(total: Tensor, trial: Sequence[Tensor]) -> list[Tensor]:
    """dD/dd, 0 for a delta that plays no part while another does."""
    found = torch.autograd.grad(total, trial, allow_unused=True) if total.requires_grad else [None] * len(trial)
    if all(g is None for g in found):
        raise ValueError(
            "the logits do not depend on delta: logits_fn must compute them from the moved input, with gradients on "
            "and nothing detached"
        )
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, trial, strict=True)]


def check(epsilon: float, xi: float | None, steps: int, name: str) -> None:
    check_epsilon(epsilon, name)
    if (xi is not None and not 0 < xi < math.inf) or steps < 1:
        raise ValueError(f"{name} needs xi > 0 (or None for epsilon) and steps >= 1, got xi={xi}, steps={steps}")
