r"""Against exposure bias: decoder inputs that are wrong now and then, as they are when a model reads its own words.

    z_i ~ Bernoulli(p_sequence),      r_it ~ Bernoulli(p_token)                                               (1)
    x'_it = u_it  where z_i, r_it and target_it,  x_it elsewhere;      u_it uniform over a pool               (2)
    loss = - sum_t log p(y_t | source, x'_<t)      the y_t are the original tokens                            (3)
    u_it ~ softmax(logits_{i,t-1} / temperature)      pool "model": scheduled sampling, oracle words          (4)
    keep(step) = k / (k + e^{step / k})      share of gold words in scheduled sampling                        (5)

Teacher forcing trains every step on gold prefixes, decoding feeds the model its own; probabilities after wrong prefixes
are then whatever they are. By (1) to (3) the model meets wrong prefixes and still has to say the right word: half of
the sequences stay as they are, in the others 30 % of the words are exchanged for words of the same target ("target"),
since models mostly write the right words in a wrong order or twice. "sequence" draws from source and target together,
as the author's code does; "vocab" from all tokens, which is weaker: such prefixes do not occur. A draw may give the
token that stood there. Parallel training is kept: nothing is decoded, and the cost is nil (pool "model": one more
forward pass without gradient).

Labels, source, start token and padding stay as they are: give the mask of the target's inputs, not of the whole row.

Source: kexue.fm/archives/7259; (4), (5): Bengio et al., 2015, arXiv:1506.03099; Zhang et al., 2019, arXiv:1906.02448
    (their Gumbel noise makes the same draw).
Shapes: B sequences, T input tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor

__all__ = ["POOLS", "corrupt_targets", "gold_share", "sampled_inputs"]

POOLS = ("target", "sequence", "vocab", "model")


def corrupt_targets(
    ids: Tensor,
    target: Tensor,
    p_sequence: float = 0.5,
    p_token: float = 0.3,
    pool: str = "target",
    mask: Tensor | None = None,
    vocab_size: int | None = None,
    proposals: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs with some of the target's tokens exchanged, eqs. (1) and (2); leave the labels as they are.

    Args:
        ids: (B, T) int64 input tokens.
        target: (B, T) bool, True for inputs that are words of the target (no start token, source or padding).
        p_sequence: share of the sequences that are touched, in [0, 1].
        p_token: share of the target's tokens that are exchanged in those, in [0, 1].
        pool: what takes their place: "target" (a token of the same target), "sequence" (of the same row), "vocab" (any
            id), "model" (`proposals`).
        mask: (B, T) bool, True for tokens of the row; needed by "sequence".
        vocab_size: V; needed by "vocab".
        proposals: (B, T) int64 what the model would have written at each input, see `sampled_inputs`; needed by
            "model".
        generator: source of randomness; None takes torch's own.

    Returns:
        (B, T) int64, a copy.

    Raises:
        ValueError: shapes differ, a share outside [0, 1], an unknown pool, or what the pool needs is missing.

    >>> ids = torch.tensor([[1, 7, 7, 2]])  # the only target word there is stands in for itself
    >>> corrupt_targets(ids, torch.tensor([[False, True, True, False]]), p_sequence=1.0, p_token=1.0)
    tensor([[1, 7, 7, 2]])
    """
    _check(ids, target, p_sequence, p_token, pool, mask, vocab_size, proposals)
    device = ids.device if generator is None else generator.device
    touched = torch.rand((len(ids), 1), generator=generator, device=device) < p_sequence
    chosen = torch.rand(ids.shape, generator=generator, device=device) < p_token
    uniform = torch.rand(ids.shape, generator=generator, device=device).to(ids.device)  # drawn in any case
    exchange = (touched & chosen).to(ids.device) & target  # eq. (1)
    if proposals is not None and pool == "model":
        drawn = proposals
    elif vocab_size is not None and pool == "vocab":
        drawn = (uniform * vocab_size).long().clamp_max(vocab_size - 1)
    else:
        drawn = _from_row(ids, mask if mask is not None and pool == "sequence" else target, uniform)
    return torch.where(exchange, drawn, ids)  # eq. (2)


def sampled_inputs(
    logits: Tensor, ids: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """What a model would have written at each input, given the gold tokens before it, eq. (4).

    Args:
        logits: (B, T, V) of the next token after each input, of a pass with teacher forcing and without gradient.
        ids: (B, T) int64, its inputs; the first of a row stays, nothing predicts it.
        temperature: divides the logits, > 0; small ones take the most probable word.
        generator: source of randomness; None takes torch's own.

    Returns:
        (B, T) int64, `proposals` of `corrupt_targets`.

    Raises:
        ValueError: shapes do not fit, or temperature is not above 0.

    >>> sure = torch.nn.functional.one_hot(torch.tensor([[4, 2]]), 5) * 1e4
    >>> sampled_inputs(sure, torch.tensor([[1, 3]]))
    tensor([[1, 4]])
    """
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(f"sampled_inputs needs logits (B, T, V) of ids (B, T); got {tuple(logits.shape)} and "
                         f"{tuple(ids.shape)}")  # fmt: skip
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; 0.01 takes the most probable word")
    probabilities = (logits[:, :-1].float() / temperature).softmax(-1)
    if not probabilities.numel():
        return ids.clone()
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator)  # (B (T - 1), 1)  eq. (4)
    return torch.cat([ids[:, :1], drawn.reshape(len(ids), -1)], dim=1)


def gold_share(step: int, k: float) -> float:
    """Share of gold words that scheduled sampling keeps at a step, eq. (5); 1 - it is `p_token` of pool "model".

    Args:
        step: of training, from 0.
        k: speed, > 0; the share is 1/2 at step k ln k.

    Returns:
        Near 1 at first, falling to 0.

    Raises:
        ValueError: k is not above 0.

    >>> round(gold_share(0, 9.0), 3)
    0.9
    """
    if not k > 0:
        raise ValueError(f"k must be > 0, got {k}; the share of gold words is 1/2 at step k ln k")
    return 1 / (1 + math.exp(min(step / k, 700.0)) / k)  # eq. (5)


def _from_row(ids: Tensor, members: Tensor, uniform: Tensor) -> Tensor:
    """For each place a token of its row, uniform over the places where `members` is True."""
    order = members.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # members first
    count = members.sum(1, keepdim=True)
    place = torch.minimum((uniform * count).long(), (count - 1).clamp_min(0))
    return ids.gather(1, order.gather(1, place))


def _check(
    ids: Tensor,
    target: Tensor,
    p_sequence: float,
    p_token: float,
    pool: str,
    mask: Tensor | None,
    vocab_size: int | None,
    proposals: Tensor | None,
) -> None:
    if ids.ndim != 2 or target.shape != ids.shape or target.dtype != torch.bool:
        raise ValueError(
            f"corrupt_targets needs ids (B, T) and target (B, T) of bool; got {tuple(ids.shape)} and "
            f"{tuple(target.shape)} of {target.dtype}"
        )
    for name, share in (("p_sequence", p_sequence), ("p_token", p_token)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share and must lie in [0, 1], got {share}; 0 leaves all as it is")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {pool!r}")
    needs = {"sequence": ("mask", mask), "vocab": ("vocab_size", vocab_size), "model": ("proposals", proposals)}
    if pool in needs and needs[pool][1] is None:
        raise ValueError(f"pool {pool!r} needs {needs[pool][0]}=")
    for name, other in (("mask", mask), ("proposals", proposals)):
        if other is not None and other.shape != ids.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, ids {tuple(ids.shape)}; they must be equal")
