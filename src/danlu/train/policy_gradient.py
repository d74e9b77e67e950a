r"""Policy gradient: train on a reward that has no gradient (F1, BLEU, a discrete choice), through the policy's log p.

    grad E_{y~p} r(y) = E_{y~p} (r(y) - b) grad log p(y)                                    (1)
    L = -mean_k stop(r_k - b_k) log p(y_k)                                                  (2)
    b_k = (sum_j r_j - r_k) / (K - 1)                                                       (3)
    log p(y) = sum_t m_t log p(y_t | y_<t)                                                  (4)
    grad of  -sum_y p(y) r(y)                                                               (5)

r is the reward, to be large; y_1 ... y_K are K independent draws from the policy p for one input, b a baseline that
must not depend on the draw it judges; m is the mask. (2) is a surrogate: its gradient is minus (1), its value means
nothing. (3) leaves the own draw out. With it inside, the gradient shrinks to (K - 1) / K of the true one. Leaving one
out does not always lower the variance against no baseline: with few draws it can raise it. Other baselines: the mean of
earlier rewards (`RunningBaseline`); the reward of the greedy answer (self-critical: pass it as a tensor).
Where the choices are few, sum them up exactly instead of drawing, (5): `expected_reward_loss`.

The draws must come from the policy as it is now: the greedy answer itself is no draw. (4) sums over the tokens; a mean
would weigh short answers more.

Source: kexue.fm/archives/7737 (2020); Williams, 1992; leave-one-out: Kool, van Hoof and Welling, 2019; self-critical:
Rennie et al., 2016, arXiv:1612.00563.
Shapes: K draws for each of B inputs, or draws of any shape; T tokens; C choices.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss
from danlu.math.relaxation import gumbel_max

__all__ = [
    "RunningBaseline",
    "choice_log_prob",
    "expected_reward_loss",
    "leave_one_out",
    "policy_gradient_loss",
    "sampled_reward_loss",
]


def policy_gradient_loss(
    log_prob: Tensor,
    reward: Tensor,
    baseline: Tensor | float | str | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The surrogate of eq. (2), whose gradient raises the expected reward.

    Args:
        log_prob: log p of the draws, with a graph, in the shape of reward; or, where the mask is given, with one more
            dimension T of tokens behind it.
        reward: (K, B), (B,) or any shape; what shall rise. Its graph, if any, is cut.
        baseline: None; "leave_one_out", eq. (3), over dimension 0; a number; or a tensor of the shape of reward, or of
            reward[0] (one for each input, the same for all K draws).
        mask: bool, the shape of log_prob, True = a token that was drawn, eq. (4); padding is False.
        reduction: "mean" over the draws, "sum" or "none".

    Returns:
        Scalar, or the shape of reward for "none"; float32 or better.

    Raises:
        ValueError: shapes do not fit (nothing is broadcast silently), an unknown baseline, fewer than 2 draws to leave
            one out.

    >>> log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> policy_gradient_loss(log_prob, torch.tensor([1.0, 0.0]), "leave_one_out").backward()
    >>> log_prob.grad  # -(1 - 0) / 2 and -(0 - 1) / 2
    tensor([-0.5000,  0.5000])
    """
    if mask is not None:
        if mask.shape != log_prob.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool in the shape of log_prob {tuple(log_prob.shape)} (True = a drawn token); got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        log_prob = torch.where(mask, wide(log_prob), 0.0).sum(dim=-1)  # eq. (4)
    if log_prob.shape != reward.shape:
        raise ValueError(
            f"policy_gradient_loss needs one log_prob for each reward, got {tuple(log_prob.shape)} and "
            f"{tuple(reward.shape)}; sum the log-probabilities of the tokens, or give the mask of the tokens"
        )
    r = wide(reward).detach()
    if isinstance(baseline, str):
        if baseline != "leave_one_out":
            raise ValueError(f"baseline must be None, 'leave_one_out', a number or a tensor, got {baseline!r}")
        r = r - leave_one_out(r)
    elif isinstance(baseline, Tensor):
        if baseline.shape not in (r.shape, r.shape[1:], torch.Size()):
            raise ValueError(
                f"the baseline must have the shape of the rewards {tuple(r.shape)}, of one draw {tuple(r.shape[1:])}, "
                f"or be one number; got {tuple(baseline.shape)}"
            )
        r = r - baseline.detach().to(r)
    elif baseline is not None:
        r = r - baseline
    return reduce_loss(-r * wide(log_prob), reduction)  # eq. (2)


def leave_one_out(reward: Tensor) -> Tensor:
    """For each draw the mean reward of the others, eq. (3).

    Args:
        reward: (K, ...) rewards of K >= 2 independent draws.

    Returns:
        Shape and dtype of reward, float32 or better.

    Raises:
        ValueError: K < 2.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]))
    tensor([4.0000, 3.5000, 1.5000])
    """
    if reward.ndim < 1 or len(reward) < 2:
        raise ValueError(
            f"leaving one out needs at least 2 draws in dimension 0, got rewards {tuple(reward.shape)}; draw more, or "
            "use RunningBaseline"
        )
    r = wide(reward)
    return (r.sum(dim=0, keepdim=True) - r) / (len(r) - 1)  # eq. (3)


def choice_log_prob(logits: Tensor, choice: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """Log-probability of what was chosen out of softmax(logits), each choice by itself.

    Args:
        logits: (..., C), any float dtype, with a graph; computed in float32 or better.
        choice: (K..., ...) int64 in [0, C), the shape of logits without dim, or with dimensions of draws in front. At
            places that a policy_gradient_loss drops by its mask any number may stand.
        mask: bool, broadcastable to logits, True = was allowed; the same as in drawing.
        dim: dimension of the choices.

    Returns:
        Shape of choice; 0 where the choice is negative.

    Raises:
        ValueError: the shapes do not fit.

    >>> choice_log_prob(torch.tensor([0.25, 0.75]).log(), torch.tensor([1, 0])).exp()
    tensor([0.7500, 0.2500])
    """
    z = wide(logits).movedim(dim, -1)
    if mask is not None:
        z = torch.where(mask.expand(logits.shape).movedim(dim, -1), z, torch.finfo(z.dtype).min)
    if choice.shape[choice.ndim - (z.ndim - 1) :] != z.shape[:-1]:
        raise ValueError(
            f"choice_log_prob needs choices {tuple(z.shape[:-1])}, or with draws in front, for logits "
            f"{tuple(logits.shape)}; got {tuple(choice.shape)}"
        )
    log_prob = z.log_softmax(dim=-1).expand(*choice.shape, z.shape[-1])
    picked = log_prob.gather(-1, choice.clamp_min(0)[..., None])[..., 0]
    return torch.where(choice >= 0, picked, 0.0)


def expected_reward_loss(
    logits: Tensor, reward: Tensor, mask: Tensor | None = None, entropy_weight: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Minus the exact expectation of the reward, eq. (5), where every choice's reward is known.

    Args:
        logits: (..., C), any float dtype.
        reward: (..., C), reward of every choice; its graph is cut.
        mask: (..., C) bool, True = may be chosen.
        entropy_weight: lambda >= 0 subtracts lambda times the policy's entropy, so that it does not settle too soon.
        reduction: "mean" over the rows, "sum" or "none".

    Returns:
        Scalar, or (...) for "none"; float32 or better.

    Raises:
        ValueError: the shapes differ.

    >>> expected_reward_loss(torch.tensor([0.25, 0.75]).log(), torch.tensor([1.0, 0.0]))
    tensor(-0.2500)
    """
    if logits.shape != reward.shape or (mask is not None and mask.shape != logits.shape):
        given = f"{tuple(logits.shape)}, {tuple(reward.shape)}" + ("" if mask is None else f" and {tuple(mask.shape)}")
        raise ValueError(f"expected_reward_loss needs logits, reward and mask of one shape (..., C); got {given}")
    z = wide(logits)
    keep = torch.ones_like(z, dtype=torch.bool) if mask is None else mask
    log_p = torch.where(keep, z, torch.finfo(z.dtype).min).log_softmax(dim=-1)
    p = torch.where(keep, log_p.exp(), 0.0)
    gain = torch.where(keep, p * wide(reward).detach(), 0.0).sum(dim=-1)
    if entropy_weight:
        gain = gain - entropy_weight * torch.where(keep, p * log_p, 0.0).sum(dim=-1)
    return reduce_loss(-gain, reduction)  # eq. (5)


def sampled_reward_loss(
    logits: Tensor,
    reward_fn: Callable[[Tensor], Tensor],
    num_samples: int = 4,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw K answers from a tagger or classifier, reward each, and return eq. (2) with leave-one-out baselines.

    All N choices of an answer are drawn independently given the logits, as a softmax head's are.

    Args:
        logits: (B, T, C) tags or (B, C) classes, with a graph.
        reward_fn: (K, B, T) or (K, B) int64 answers -> (K, B) rewards, or (K,) for a metric of the whole batch, as F1
            of a corpus is; positions that the mask drops hold -1.
        num_samples: K >= 2.
        mask: (B, T) bool, True = a token; for taggers alone.
        generator: source of the draws.

    Returns:
        Scalar.

    Raises:
        ValueError: K < 2, rewards of another shape, a mask that does not fit.

    >>> logits = torch.zeros(2, 3, requires_grad=True)
    >>> loss = sampled_reward_loss(logits, lambda answer: (answer == 1).float(), num_samples=8)
    >>> loss.requires_grad
    True
    """
    if num_samples < 2 or logits.ndim not in (2, 3):
        raise ValueError(
            f"sampled_reward_loss needs logits (B, C) or (B, T, C) and num_samples >= 2 to leave one out, got "
            f"{tuple(logits.shape)} and {num_samples}"
        )
    if mask is not None and (mask.shape != logits.shape[:-1] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool {tuple(logits.shape[:-1])} (True = a token), got {mask.dtype} {tuple(mask.shape)}"
        )
    answer = gumbel_max(logits, num_samples, generator=generator)  # (K, B[, T])
    if mask is not None:
        answer = torch.where(mask, answer, -1)
    log_prob = choice_log_prob(logits, answer)  # (K, B[, T]), 0 at padding
    log_prob = log_prob.sum(dim=-1) if logits.ndim == 3 else log_prob  # (K, B)  eq. (4)
    reward = torch.as_tensor(reward_fn(answer), device=log_prob.device)
    if reward.shape == (num_samples,):  # one reward for the whole batch: the batch is the answer
        return policy_gradient_loss(log_prob.sum(dim=1), reward, "leave_one_out")
    if reward.shape != log_prob.shape:
        raise ValueError(
            f"reward_fn must return (K, B) = {tuple(log_prob.shape)} or (K,) = ({num_samples},) rewards, got "
            f"{tuple(reward.shape)}"
        )
    return policy_gradient_loss(log_prob, reward, "leave_one_out")


class RunningBaseline:
    r"""The mean of earlier rewards, as a baseline that knows nothing of the draws it judges.

    baseline = RunningBaseline()
    loss = policy_gradient_loss(log_prob, reward, baseline(reward))      # judges by the past, then remembers
    """

    def __init__(self, decay: float = 0.99) -> None:
        """Start without a past; the first baseline is 0.

        Args:
            decay: share of the past in the mean after a batch, in [0, 1).

        Raises:
            ValueError: decay outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}; 0.99 remembers about 100 batches")
        self.decay, self.total, self.weight = decay, 0.0, 0.0

    def __call__(self, reward: Tensor) -> float:
        """The mean of the rewards before these, which it then takes in.

        Args:
            reward: rewards of this batch, any shape.

        >>> baseline = RunningBaseline(decay=0.5)
        >>> baseline(torch.tensor([1.0, 3.0])), baseline(torch.tensor([9.0])), baseline(torch.tensor([9.0]))
        (0.0, 2.0, 6.666666666666667)
        """
        value = self.total / self.weight if self.weight else 0.0
        self.total = self.decay * self.total + (1 - self.decay) * float(wide(reward).mean())
        self.weight = self.decay * self.weight + (1 - self.decay)
        return value

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors."""
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("total", "weight")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()`.

        Args:
            state: what `state_dict()` returned.
        """
        self.total, self.weight = float(state["total"]), float(state["weight"])
