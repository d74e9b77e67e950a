r"""MEMM and Bi-MEMM heads: a chain of tags normalised step by step, so that training needs no recursion.

    p_fw(y|x) = softmax(f_1)[y_1] * prod over t >= 2 of softmax(f_t + g[y_{t-1}, :])[y_t]                     (1)
    p_bw(y|x) = softmax(f_n)[y_n] * prod over t <= n-1 of softmax(f_t + g[:, y_{t+1}])[y_t]                   (2)
    loss      = -log p_fw,   or for the bidirectional model   -(log p_fw + log p_bw) / 2                      (3)
    g         = L R^T                                         low rank r: history costs K r, not K^2          (4)

f are the emissions, g[i, j] scores tag i before tag j; both directions share g. A conditional random field has the same
numerator and one normaliser for the whole path; here each step has its own, which gold neighbours alone decide. A
normaliser depends on one tag, so it moves into the emissions, and each model is a chain like a CRF:

    n_t[i] = logsumexp_j(f_t[j] + g[i, j]),   m_t[j] = logsumexp_i(f_t[i] + g[i, j])                          (5)
    fw:  score = sum_t g[y_{t-1}, y_t] + f_t[y_t] - n_{t+1}[y_t]                                              (6)
    bi:  score = sum_t g[y_{t-1}, y_t] + f_t[y_t] - n_{t+1}[y_t] / 2 - m_{t-1}[y_t] / 2                       (7)

(neighbours that do not exist drop out). Viterbi on (6) or (7) is exact decoding, the default. The author's library
decodes on f + g without the normalisers, as a CRF: `decode_method="crf"`, which need not find the most probable path.
The marginals of (6) are those of (1); the marginals of (7) are those of the renormalised product of both directions.

`compat="bert4keras"` halves f + g wherever there is a neighbour (a temperature of 2, which the post does not have) and
makes "mean" the mean over kept steps, as `MaximumEntropyMarkovModel` of bert4keras does; with `decode_method="crf"` it
also decodes like it.

Masked steps, wherever they stand, are skipped: the neighbour of a step is the nearest kept one.

Source: kexue.fm/archives/7213 (2020); McCallum, Freitag and Pereira, 2000, "Maximum Entropy Markov Models".
Shapes: B batch, T steps, K tags, r rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.semiring import chain_marginals
from danlu.nn.softmax_head import (
    Constraints,
    check_num_tags,
    checked_tagging,
    constrained_viterbi,
    reduce_sequences,
    register_penalties,
    step_nll,
)

__all__ = ["MEMM", "memm_chain", "memm_nll"]

Transitions = Tensor | tuple[Tensor, Tensor]


def memm_nll(
    emissions: Tensor,
    tags: Tensor,
    transitions: Transitions,
    mask: Tensor | None = None,
    reduction: str = "mean",
    bidirectional: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Negative log-likelihood of the tags under eq. (1), or the mean of both directions, eq. (3).

    Args:
        emissions: (B, T, K) scores f, any float dtype.
        tags: (B, T) integers in [0, K); any value where the mask is False.
        transitions: (K, K) scores g, row before column; or the pair (L, R) of eq. (4), (K, r) each.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        reduction: "mean" or "sum" over sequences, "none" for each sequence, "token" for the mean over kept steps.
        bidirectional: also predict each tag from the one after it.
        scale: multiplies f + g at steps with a neighbour; bert4keras has 1/2.

    Returns:
        Scalar, or (B,) for "none"; float32, or float64 for float64 emissions.

    Raises:
        ValueError: shapes do not fit, a kept tag is out of range, or the reduction is unknown.

    >>> g = torch.tensor([[0.0, 100.0], [100.0, 0.0]])  # tags alternate: only the first one is open
    >>> memm_nll(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 0]]), g)
    tensor(0.6931)
    """
    emissions, tags, mask = checked_tagging(emissions, tags, mask)
    before, after = _nearest_kept(mask)
    with torch.autocast(emissions.device.type, enabled=False):
        left, right = _factors(transitions, emissions)
        nll = _direction_nll(emissions, tags, left, right, before, scale)  # eq. (1)
        if bidirectional:
            left, right = (left.mT, None) if right is None else (right, left)
            nll = (nll + _direction_nll(emissions, tags, left, right, after, scale)) / 2  # eq. (2), (3)
    return reduce_sequences(nll, mask, reduction)


def memm_chain(
    emissions: Tensor,
    transitions: Transitions,
    mask: Tensor | None = None,
    bidirectional: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The model as a chain without normalisers inside: emissions and transitions whose path sums are eq. (6) or (7).

    Args:
        emissions: (B, T, K) scores f, any float dtype.
        transitions: (K, K) scores g, row before column; or the pair (L, R) of eq. (4), (K, r) each.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        bidirectional: eq. (7) instead of eq. (6).
        scale: multiplies f + g at steps with a neighbour; bert4keras has 1/2.

    Returns:
        Emissions (B, T, K), 0 at masked steps, and transitions (K, K), for any function of a linear chain. What does
        not depend on the path is left out.

    Raises:
        ValueError: shapes do not fit.

    >>> f, g = memm_chain(torch.zeros(1, 2, 2), torch.zeros(2, 2))
    >>> f  # the first step pays the second one's normaliser, log 2
    tensor([[[-0.6931, -0.6931],
             [ 0.0000,  0.0000]]])
    """
    emissions, _, mask = checked_tagging(emissions, None, mask)
    before, after = _nearest_kept(mask)
    with torch.autocast(emissions.device.type, enabled=False):
        left, right = _factors(transitions, emissions)
        g = scale * (left if right is None else left @ right.mT)  # (K, K)  eq. (4)
        f = scale * emissions
        share = 0.5 if bidirectional else 1.0  # of each direction
        chain = f - share * _neighbour(_normaliser(f, g), after)  # eq. (6)
        ends = share * (before < 0)[..., None]  # (B, T, 1): steps that the scale spares
        if bidirectional:
            chain = chain - share * _neighbour(_normaliser(f, g.mT), before)  # eq. (7)
            ends = ends + share * (after < 0)[..., None]
        chain = chain + (1 - scale) * ends * emissions
    return chain.masked_fill(~mask[..., None], 0), g


class MEMM(nn.Module):
    r"""`memm_nll` with the interface of the tagging heads; `CRF` and `SoftmaxHead` take the same calls.

    Transitions start by Glorot's uniform rule, as the author's do. They learn slowly beside a pretrained encoder: give
    them a larger rate, `danlu.optim.param_groups(model, lr, {"transition": 100})`.

    Args:
        num_tags: number K of tags.
        rank: r of eq. (4), for many tags; None keeps the full (K, K) matrix `transitions`, else the factors are
            `transition_left` and `transition_right`.
        bidirectional: train both directions, eq. (3); same parameters.
        decode_method: "exact" or "crf", the author's.
        constraints: None, or bool tensors (allowed (K, K), start (K,), end (K,)) that say which tag may follow which,
            open a sequence and end it (`danlu.math.tag_scheme.allowed_transitions` makes them); used in decoding.
        compat: None, or "bert4keras" for that library's halved scores and its mean over steps.

    Raises:
        ValueError: a setting is unknown or out of its range.

    >>> head = MEMM(3, bidirectional=True)
    >>> head.decode(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        num_tags: int,
        rank: int | None = None,
        bidirectional: bool = False,
        decode_method: str = "exact",
        constraints: Constraints | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        if decode_method not in ("exact", "crf"):
            raise ValueError(
                f"decode_method must be 'exact' (of the normalised model) or 'crf' (f + g, the author's), "
                f"got {decode_method!r}"
            )
        if compat not in (None, "bert4keras"):
            raise ValueError(f"compat must be None or 'bert4keras', got {compat!r}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}; rank=None keeps the full matrix")
        register_penalties(self, num_tags, constraints)
        self.num_tags = num_tags
        self.rank = rank
        self.bidirectional = bidirectional
        self.decode_method = decode_method
        self.compat = compat
        if rank is None:
            self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        else:
            self.transition_left = nn.Parameter(torch.empty(num_tags, rank))
            self.transition_right = nn.Parameter(torch.empty(num_tags, rank))
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    @property
    def transition_matrix(self) -> Tensor:
        """g (K, K), also when it is stored in two factors."""
        return self.transitions if self.rank is None else self.transition_left @ self.transition_right.mT  # eq. (4)

    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """`memm_nll` of the tags.

        Args:
            emissions: (B, T, K) scores, any float dtype.
            tags: (B, T) integers in [0, K); any value where the mask is False.
            mask: (B, T) bool, True = keep, any pattern; None keeps all.
            reduction: "mean", "sum", "none" or "token"; under compat="bert4keras" "mean" is "token".

        Returns:
            Scalar, or (B,) for "none".

        Raises:
            ValueError: shapes do not fit, a kept tag is out of range, or the reduction is unknown.
        """
        check_num_tags(self, emissions)
        if self.compat and reduction == "mean":
            reduction = "token"
        return memm_nll(emissions, tags, self._stored(), mask, reduction, self.bidirectional, self._scale())

    def log_prob(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probability of each tag sequence; for the bidirectional model the mean of the two, eq. (3).

        Args:
            emissions: (B, T, K) scores, any float dtype.
            tags: (B, T) integers in [0, K); any value where the mask is False.
            mask: (B, T) bool, True = keep, any pattern; None keeps all.

        Returns:
            (B,) nats, at most 0; 0 for rows that keep nothing. The mean of two directions is not normalised over paths.
        """
        return -self(emissions, tags, mask, "none")

    @torch.no_grad()
    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The best tag sequence by `decode_method`, among the legal ones if there are constraints.

        Args:
            emissions: (B, T, K) scores, any float dtype.
            mask: (B, T) bool, True = keep, any pattern; None keeps all.

        Returns:
            (B, T) int64, -1 at masked steps.
        """
        check_num_tags(self, emissions)
        emissions, _, mask = checked_tagging(emissions, None, mask)
        transitions = self.transition_matrix.to(emissions.dtype)
        if self.decode_method == "exact":
            emissions, transitions = memm_chain(emissions, transitions, mask, self.bidirectional, self._scale())
        return constrained_viterbi(self, emissions, transitions, mask)

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probability of every tag at every step under eq. (6) or (7); constraints and `decode_method` do not enter.

        Args:
            emissions: (B, T, K) scores, any float dtype.
            mask: (B, T) bool, True = keep, any pattern; None keeps all.

        Returns:
            (B, T, K), 0 at masked steps; differentiable.
        """
        check_num_tags(self, emissions)
        chain, transitions = memm_chain(emissions, self._stored(), mask, self.bidirectional, self._scale())
        return chain_marginals(chain, transitions, mask=mask)

    def extra_repr(self) -> str:
        """The settings."""
        text = f"{self.num_tags}, rank={self.rank}, bidirectional={self.bidirectional}, "
        return text + f"decode_method={self.decode_method!r}, compat={self.compat!r}"

    def _stored(self) -> Transitions:
        return self.transitions if self.rank is None else (self.transition_left, self.transition_right)

    def _scale(self) -> float:
        return 0.5 if self.compat else 1.0


def _factors(transitions: Transitions, emissions: Tensor) -> tuple[Tensor, Tensor | None]:
    """(g, None) or (L, R) in the dtype of the emissions; raises when the shapes do not fit."""
    left, right = (transitions, None) if isinstance(transitions, Tensor) else transitions
    num_tags = emissions.shape[-1]
    fits = left.ndim == 2 and left.shape[0] == num_tags
    fits = fits and (left.shape[1] == num_tags if right is None else left.shape == right.shape)
    if not fits:
        got = tuple(left.shape) if right is None else (tuple(left.shape), tuple(right.shape))
        raise ValueError(
            f"emissions of {num_tags} tags need transitions ({num_tags}, {num_tags}), or two factors "
            f"({num_tags}, rank); got {got}"
        )
    return left.to(emissions.dtype), None if right is None else right.to(emissions.dtype)


def _nearest_kept(mask: Tensor) -> tuple[Tensor, Tensor]:
    """For every step the nearest kept step before and after it, (B, T) each, -1 where there is none."""
    steps = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    if not mask.numel():
        return steps, steps
    upto = steps.masked_fill(~mask, -1).cummax(dim=1).values  # the step itself counts
    last = mask.shape[1]
    since = steps.masked_fill(~mask, last).flip(1).cummin(dim=1).values.flip(1)
    since = since.masked_fill(since == last, -1)
    return F.pad(upto[:, :-1], (1, 0), value=-1), F.pad(since[:, 1:], (0, 1), value=-1)


def _direction_nll(
    emissions: Tensor, tags: Tensor, left: Tensor, right: Tensor | None, neighbour: Tensor, scale: float
) -> Tensor:
    """-log softmax(f_t + row of g for the gold neighbour)[y_t] for every step, (B, T)."""
    alone = neighbour < 0
    given = tags.gather(1, neighbour.clamp_min(0)).masked_fill(alone, left.shape[0])  # (B, T), K = no neighbour
    padded = F.pad(left, (0, 0, 0, 1))  # a row of zeros for steps without neighbour
    history = padded.index_select(0, given.flatten()).unflatten(0, given.shape)  # (B, T, K) or (B, T, r)
    if right is not None:
        history = history @ right.mT  # (B, T, K)  eq. (4)
    logits = emissions + history
    if scale != 1:
        logits = torch.where(alone[..., None], logits, scale * logits)
    return step_nll(logits, tags)


def _neighbour(values: Tensor, index: Tensor) -> Tensor:
    """values (B, T, K) taken at another step, (B, T) index; 0 where it is -1."""
    if not values.numel():
        return values
    taken = values.gather(1, index.clamp_min(0)[..., None].expand_as(values))
    return taken.masked_fill(index[..., None] < 0, 0)


def _normaliser(f: Tensor, g: Tensor) -> Tensor:
    """n_t[i] = logsumexp_j(f_t[j] + g[i, j]) for all t and i, (B, T, K), eq. (5).

    As a matrix product of exponentials where their range allows it, otherwise row by row.
    """
    if not f.numel():
        return f
    f_top, g_top = f.detach().amax(dim=-1, keepdim=True), g.detach().amax(dim=-1, keepdim=True)  # (B, T, 1), (K, 1)
    spread = (f_top - f.amin(dim=-1, keepdim=True)).max() + (g_top - g.amin(dim=-1, keepdim=True)).max()
    if spread < 0.9 * -torch.tensor(torch.finfo(f.dtype).tiny).log():
        return ((f - f_top).exp() @ (g - g_top).exp().mT).log() + f_top + g_top[:, 0]
    return torch.stack([(f + row).logsumexp(dim=-1) for row in g], dim=-1)
