r"""The softmax head: every step chooses its tag alone; the baseline that CRF and MEMM are measured against.

    log p(y|x) = sum over kept t of log softmax(f_t)[y_t]                            (1)

f_t are the emissions (logits) of step t. `SoftmaxHead` has the interface of `CRF` and `MEMM`, so users swap one word.
With constraints decoding looks for the best legal path (Viterbi with scores 0 and -inf between neighbours) instead of
the best tag of each step; training does not change.

Source: the usual token classifier; constrained decoding as in kexue.fm/archives/7196.
Shapes: B batch, T steps, K tags.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss
from danlu.nn.crf_decode import viterbi

__all__ = ["SoftmaxHead", "softmax_nll"]

Constraints = tuple[Tensor, Tensor, Tensor]
FEW_TAGS = 16  # measured on the CPU: 4 times faster at 7 tags, equal at 20
PENALTIES = ("transition_penalty", "start_penalty", "end_penalty")  # buffers of a head: 0 allowed, -inf forbidden


def softmax_nll(emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of the tags when each step is on its own, eq. (1).

    Args:
        emissions: (B, T, K) logits, any float dtype.
        tags: (B, T) integers in [0, K); any value where the mask is False.
        mask: (B, T) bool, True = keep; None keeps all.
        reduction: "mean" or "sum" over sequences, "none" for each sequence, "token" for the mean over kept steps.

    Returns:
        Scalar, or (B,) for "none"; float32, or float64 for float64 emissions.

    Raises:
        ValueError: shapes do not fit, a kept tag is out of range, or the reduction is unknown.

    >>> softmax_nll(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]))  # three fair coins: 3 log 2
    tensor(2.0794)
    """
    emissions, tags, mask = checked_tagging(emissions, tags, mask)
    return reduce_sequences(step_nll(emissions, tags), mask, reduction)  # eq. (1)


class SoftmaxHead(nn.Module):
    r"""`softmax_nll` with the interface of the tagging heads; it has no parameters.

    Args:
        num_tags: number K of tags.
        constraints: None, or bool tensors (allowed (K, K), start (K,), end (K,)) that say which tag may follow which,
            open a sequence and end it (`danlu.math.tag_scheme.allowed_transitions` makes them); used in decoding.

    Raises:
        ValueError: num_tags is below 1 or the constraints have another shape.

    >>> SoftmaxHead(2).decode(torch.tensor([[[0.0, 1.0], [3.0, 2.0]]]))
    tensor([[1, 0]])
    """

    def __init__(self, num_tags: int, constraints: Constraints | None = None) -> None:
        super().__init__()
        self.num_tags = num_tags
        register_penalties(self, num_tags, constraints)

    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """`softmax_nll` of the tags.

        Args:
            emissions: (B, T, K) logits, any float dtype.
            tags: (B, T) integers in [0, K); any value where the mask is False.
            mask: (B, T) bool, True = keep; None keeps all.
            reduction: "mean", "sum", "none" or "token".

        Returns:
            Scalar, or (B,) for "none".

        Raises:
            ValueError: shapes do not fit, a kept tag is out of range, or the reduction is unknown.
        """
        check_num_tags(self, emissions)
        return softmax_nll(emissions, tags, mask, reduction)

    def log_prob(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probability of each tag sequence, eq. (1).

        Args:
            emissions: (B, T, K) logits, any float dtype.
            tags: (B, T) integers in [0, K); any value where the mask is False.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B,) nats, at most 0; 0 for rows that keep nothing.
        """
        return -self(emissions, tags, mask, "none")

    @torch.no_grad()
    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The most probable tags; with constraints, the most probable legal sequence.

        Args:
            emissions: (B, T, K) logits, any float dtype.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, T) int64, -1 at masked steps.
        """
        check_num_tags(self, emissions)
        emissions, _, mask = checked_tagging(emissions, None, mask)
        if self.transition_penalty is None:  # without constraints
            return emissions.argmax(dim=-1).masked_fill(~mask, -1)
        scores = emissions.new_zeros(self.num_tags, self.num_tags)
        return constrained_viterbi(self, emissions, scores, mask)

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probability of every tag at every step; constraints do not enter.

        Args:
            emissions: (B, T, K) logits, any float dtype.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, T, K), 0 at masked steps.
        """
        check_num_tags(self, emissions)
        emissions, _, mask = checked_tagging(emissions, None, mask)
        return emissions.softmax(dim=-1).masked_fill(~mask[..., None], 0)


def checked_tagging(emissions: Tensor, tags: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Emissions in float32 or better, tags with 0 at masked steps, and a mask; raises when they do not fit."""
    if emissions.ndim != 3 or emissions.shape[-1] < 1 or not emissions.is_floating_point():
        raise ValueError(
            f"emissions must be floats (batch, steps, tags), got {emissions.dtype} {tuple(emissions.shape)}; "
            "for one sequence add a first axis with emissions[None]"
        )
    shape, device = emissions.shape[:2], emissions.device
    emissions = wide(emissions)
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    elif mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"mask must be bool {tuple(shape)}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
            "Turn a 0/1 mask into one with mask.bool()."
        )
    else:
        emissions = emissions.masked_fill(~mask[..., None], 0)
    if tags is None:
        return emissions, torch.zeros(shape, dtype=torch.int64, device=device), mask
    if tags.shape != shape or tags.is_floating_point() or tags.dtype == torch.bool:
        raise ValueError(
            f"tags must be integers {tuple(shape)}, one for each step of the emissions {tuple(emissions.shape)}; got "
            f"{tags.dtype} {tuple(tags.shape)}"
        )
    tags = tags.long().masked_fill(~mask, 0)
    wrong = (tags < 0) | (tags >= emissions.shape[-1])
    if wrong.any():
        row, step = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"tags must lie in [0, {emissions.shape[-1]}), got {int(tags[row, step])} in row {row} at step {step}; "
            "mark steps without a tag by mask=False, then their value does not matter"
        )
    return emissions, tags, mask


def step_nll(logits: Tensor, tags: Tensor) -> Tensor:
    """Cross-entropy of every step, (B, T); few tags run across the steps, which keeps vector registers full."""
    flat, target = logits.flatten(0, 1), tags.flatten()  # (B T, K), (B T,)
    if logits.shape[-1] > FEW_TAGS:
        return F.cross_entropy(flat, target, reduction="none").view(tags.shape)
    return F.cross_entropy(flat.T[None], target[None], reduction="none").view(tags.shape)


def reduce_sequences(nll: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Losses (B, T) of steps as the heads report them: over sequences, or "token", over kept steps."""
    if reduction not in ("mean", "sum", "none", "token"):
        raise ValueError(f"reduction must be 'mean', 'sum', 'none' or 'token', got {reduction!r}")
    if reduction == "token":
        return reduce_loss(nll, "mean", mask)
    return reduce_loss(nll.masked_fill(~mask, 0).sum(dim=1), reduction)


def check_num_tags(head: nn.Module, emissions: Tensor) -> None:
    """Emissions for another number of tags are a slip of the layer before."""
    if emissions.ndim == 3 and emissions.shape[-1] != head.num_tags:
        raise ValueError(
            f"{type(head).__name__}({head.num_tags}) needs emissions (batch, steps, {head.num_tags}), got "
            f"{tuple(emissions.shape)}; give the layer before it {head.num_tags} outputs"
        )


def register_penalties(head: nn.Module, num_tags: int, constraints: Constraints | None) -> None:
    """Buffers with 0 where a head's constraints allow and -inf where they forbid; None without constraints."""
    if num_tags < 1:
        raise ValueError(f"num_tags must be at least 1, got {num_tags}")
    shapes = ((num_tags, num_tags), (num_tags,), (num_tags,))
    if constraints is not None:
        got = tuple(tuple(part.shape) for part in constraints)
        if got != shapes or any(part.dtype != torch.bool for part in constraints):
            raise ValueError(
                f"constraints must be bool tensors (allowed, start, end) of shapes {shapes}, True = allowed; got {got} "
                f"of {', '.join(str(part.dtype) for part in constraints)}; allowed_transitions(labels, scheme) "
                "makes them"
            )
    for i, name in enumerate(PENALTIES):
        allowed = None if constraints is None else constraints[i].cpu()
        penalty = None if allowed is None else torch.zeros(shapes[i]).masked_fill(~allowed, -torch.inf)
        head.register_buffer(name, penalty, persistent=False)


def constrained_viterbi(head: nn.Module, emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """The best path of a chain under the penalties of a head, (B, T), -1 at masked steps."""
    penalty, start, end = (getattr(head, name) for name in PENALTIES)
    if penalty is not None:
        transitions = transitions + penalty
    return viterbi(emissions, transitions, start, end, mask)[0]
