r"""InfoNCE and FlatNCE: an anchor, its positive and its negatives, with gradients that low precision leaves whole.

    u = log sum_{i in N} exp(s_i) - s_t                                             FlatNCE   (1)
    L = log(1 + e^u) = - log p_t                                                    InfoNCE   (2)
    dL/ds_t = - (1 - p_t),   dL/ds_i = (1 - p_t) q_i,   q = softmax over N,   1 - p_t = sigmoid(u)   (3)
    L = mean over positives t of (1) or (2), always against the same N                        (4)

s are the scores of one anchor (cosine over temperature), t is its positive, N its negatives. The gradient of (1) is
that of (2) without the factor 1 - p_t: a solved anchor pulls as hard as any. u is a log-odds: negative values are
normal, chance is log |N|, and softplus(u) is InfoNCE. The paper writes (1) as xi / stop_gradient(xi), xi = e^u, whose
value is always 1; the post's form here has the same gradient and a value that means something.

Why not torch's cross_entropy: it forms the positive's gradient as p_t - 1, a difference with an error of half a unit in
the last place of 1. Where an anchor is nearly solved that is the whole of it: the anchor is still pushed from its
negatives and no longer pulled to its positive. Here 1 - p_t is never formed: it is sigmoid(u), (3). Scores are read in
float32 or better and their row's maximum is taken off first, so the pull and the pushes cancel to rounding. But scores
rounded to half precision stay rounded (at 20 the step of bfloat16 is 0.125): `contrastive_scores` multiplies in float32
under autocast too.

Two effects that the paper and the post do not part: a common factor, which Adam takes out, and the weight of solved
against unsolved anchors. Only the second remains with Adam. FlatNCE is unbounded below as the temperature falls, so a
learned temperature falls for ever; and false negatives keep full weight for ever. The same objective as (1) is known as
decoupled contrastive learning.

Source: Chen et al., 2021, arXiv:2107.01152; kexue.fm/archives/8586; Yeh et al., 2021, arXiv:2110.06848.
Shapes: N anchors, K candidates.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["contrastive_stats", "flat_nce", "info_nce"]


def flat_nce(scores: Tensor, target: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Log-odds of the negatives against the positive, eq. (1).

    Args:
        scores: (N, K) similarities already divided by the temperature, any float dtype; -inf is no candidate.
        target: (N,) integers in [0, K), the positive's column, or (N, K) bool, True = a positive; all else is negative.
        mask: (N, K) bool, True = a candidate; what stands elsewhere has no influence. None keeps all.
        reduction: "mean" or "sum" over the anchors that have a positive, or "none" (0 at the others).

    Returns:
        Scalar, or (N,) for "none"; float32, or float64 for float64 scores. Negative values are normal.

    Raises:
        ValueError: shapes or dtypes do not fit, a column outside [0, K), or an anchor with a positive and no negative.

    >>> flat_nce(torch.zeros(1, 3), torch.tensor([0]))  # two negatives as good as the positive: log 2
    tensor(0.6931)
    """
    return _loss("flat_nce", scores, target, mask, reduction, lambda u: u)


def info_nce(scores: Tensor, target: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Minus the log-probability of the positive among the candidates, eq. (2); gradients by eq. (3).

    With one positive an anchor the value is `torch.nn.functional.cross_entropy`'s.

    Args:
        scores: (N, K) similarities already divided by the temperature, any float dtype; -inf is no candidate.
        target: (N,) integers in [0, K), the positive's column, or (N, K) bool, True = a positive; all else is negative.
        mask: (N, K) bool, True = a candidate; what stands elsewhere has no influence. None keeps all.
        reduction: "mean" or "sum" over the anchors that have a positive, or "none" (0 at the others).

    Returns:
        Scalar, or (N,) for "none"; >= 0, float32, or float64 for float64 scores.

    Raises:
        ValueError: shapes or dtypes do not fit, a column outside [0, K), or an anchor with a positive and no negative.

    >>> info_nce(torch.zeros(1, 3), torch.tensor([0]))  # one of three: log 3
    tensor(1.0986)
    """
    return _loss("info_nce", scores, target, mask, reduction, lambda u: -F.logsigmoid(-u))  # eq. (2)


@torch.no_grad()
def contrastive_stats(scores: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """What tells whether float error, hard negatives or easy positives rule a batch; scalars without gradient.

    Args:
        scores: (N, K), as in `flat_nce`.
        target: (N,) or (N, K), as in `flat_nce`.
        mask: (N, K), as in `flat_nce`.

    Returns:
        "infonce" (mean of eq. (2)), "accuracy" (share of positives above every negative), "ess" (mean of 1 / sum q^2:
        1 when one negative has all the weight, |N| when they are alike), "xi_median" (of e^u), "share_underflow" (of
        positives whose p_t rounds to 1 in the dtype of the scores), "alignment" (mean of -s_t) and "uniformity" (mean
        of log sum_N exp(s)); the last two add up to FlatNCE. nan without any positive.

    Raises:
        ValueError: as `flat_nce`.

    >>> stats = contrastive_stats(torch.tensor([[9.0, 1.0, 1.0]]), torch.tensor([0]))
    >>> stats["ess"], stats["accuracy"], stats["alignment"]
    (tensor(2.), tensor(1.), tensor(-9.))
    """
    positive, negative = _sets("contrastive_stats", scores, target, mask)
    kept = positive.any(1)
    s, positive = wide(scores[kept]), positive[kept]
    s = s.masked_fill(~(positive | negative[kept]), -torch.inf)
    pushed = s.masked_fill(positive, -torch.inf)
    lse = pushed.logsumexp(1, keepdim=True)  # (N, 1)
    anchor = torch.where(positive)[0]
    s_t, lse_t, most = s[positive], lse[anchor, 0], pushed.amax(1)[anchor]  # one a positive
    u = lse_t - s_t  # eq. (1)
    certain = torch.sigmoid(-u.double()).to(scores.dtype) == 1
    return {
        "infonce": F.softplus(u).mean(),
        "accuracy": (s_t > most).to(s.dtype).mean(),
        "ess": (-(2 * (pushed - lse)).logsumexp(1)).exp().mean(),
        "xi_median": u.median().exp() if len(u) else u.sum() * torch.nan,
        "share_underflow": certain.to(s.dtype).mean(),
        "alignment": -s_t.mean(),
        "uniformity": lse_t.mean(),
    }


def _loss(
    name: str,
    scores: Tensor,
    target: Tensor,
    mask: Tensor | None,
    reduction: str,
    link: Callable[[Tensor], Tensor],
) -> Tensor:
    positive, negative = _sets(name, scores, target, mask)
    s = torch.where(positive | negative, wide(scores), 0.0)  # (N, K)
    pushed = torch.where(negative, s, -torch.inf)
    top = pushed.detach().amax(1, keepdim=True)  # (N, 1)
    top = torch.where(top.isfinite(), top, 0.0)
    spread = (pushed - top).logsumexp(1, keepdim=True)  # (N, 1), in [0, log K]
    if target.ndim == 1:
        each = link((top - s.gather(1, target.long()[:, None])) + spread)[:, 0]  # (N,)  eq. (1)
    else:
        u = torch.where(positive, (top - s) + spread, 0.0)  # (N, K)  eq. (1)
        each = torch.where(positive, link(u), 0.0).sum(1) / positive.sum(1).clamp_min(1)  # (N,)  eq. (4)
    return reduce_loss(each, reduction, positive.any(1))


def _sets(name: str, scores: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which candidates are positives and which negatives, both (N, K) bool."""
    index = target.ndim == 1 and not target.is_floating_point() and target.dtype != torch.bool
    several = target.ndim == 2 and target.dtype == torch.bool
    fits = scores.ndim == 2 and scores.shape[1] >= 2 and scores.is_floating_point()
    if not (fits and (index or several) and target.shape == scores.shape[: target.ndim]):
        raise ValueError(
            f"{name} needs float scores (N, K) with K >= 2 and target (N,) of integers or (N, K) of bool; got "
            f"{tuple(scores.shape)} and {target.dtype} {tuple(target.shape)}. For two batches of embeddings use "
            "ContrastiveLoss()(anchors, candidates)"
        )
    if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {tuple(scores.shape)}, True = a candidate; got {mask.dtype} "
                         f"{tuple(mask.shape)}")  # fmt: skip
    check = not torch.compiler.is_compiling()
    columns = scores.shape[1]
    if index and check and ((target < 0) | (target >= columns)).any():
        raise ValueError(f"target must lie in [0, {columns}) for {columns} candidates; to leave an anchor out give "
                         "target as (N, K) bool with an empty row")  # fmt: skip
    places = torch.arange(columns, device=scores.device)
    positive = places == target[:, None] if index else target
    candidate = scores.detach() != -torch.inf
    candidate = candidate if mask is None else candidate & mask
    positive, negative = positive & candidate, ~positive & candidate
    if check:
        lonely = positive.any(1) & ~negative.any(1)
        if lonely.any():
            raise ValueError(
                f"anchor {int(lonely.nonzero()[0])} has a positive and no negative, so {name} has nothing to compare; "
                "give more candidates, or mask its positive to leave it out"
            )
    return positive, negative
