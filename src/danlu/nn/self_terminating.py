r"""Output layers of language models whose greedy search and beam search provably end.

z_t is the logit of the end token at step t, u_t(v) those of the others; t counts the steps of the target from 0.

    NMST   log keep_t = (t + 1) log(1 - eps) + log sigmoid(-z_t)                                            (1)
    ST     log keep_t = sum_{s <= t} [log(1 - eps) + log sigmoid(-z_s)]                                     (2)
    log p_t(end) = log(1 - keep_t),   log p_t(v) = log keep_t + log softmax_{v != end}(u_t)                 (3)
    p_t(end) >= 1 - (1 - eps)^{t+1}                                                                         (4)

By (4) the end token is the most probable one after `guaranteed_steps(eps)` steps at the latest, whatever the network
says: 69 for eps = 0.01, 693 for 0.001, 69315 for 1e-5. A small eps costs little likelihood and promises little. In ST
p(end) can only grow; NMST keeps the bound and lets p(end) rise and fall, which costs less likelihood: prefer it.
Everything stays in logarithms, so nothing underflows at step 10,000 and nothing cancels in half precision.

Steps outside `mask` (prompt, source, padding) do not count: keep = 1 there, p(end) is exactly 0 and its logarithm -inf,
and t goes on where it was. The released training code of NMST has sigma(z) / (sigma(z) + e sigma(-z)) there instead (a
logarithm of 1 where 0 was meant). The paper of ST writes keep = (1 - eps) sigmoid(+z); our sign lets z mean "end" in
both, so the end row of a trained output layer is a sensible start.

Source: ST: Welleck et al., 2020, arXiv:2002.02492; NMST: Choi et al., 2022, arXiv:2210.00660; kexue.fm/archives/7500.
Shapes: B batch, T steps, V tokens with the end token among them, D features.
"""

import math

import torch
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype

__all__ = ["SelfTerminatingHead", "guaranteed_steps", "self_terminating_log_probs"]

KINDS = ("nmst", "st")


def self_terminating_log_probs(
    logits: Tensor, end_id: int, eps: float = 1e-3, kind: str = "nmst", mask: Tensor | None = None
) -> Tensor:
    """Log-probabilities of the next token at every step, eq. (3).

    Args:
        logits: (B, T, V) scores of the next token, any float dtype; column `end_id` is z.
        end_id: the end token, in [0, V).
        eps: least rate of ending, in [0, 1); 0 promises nothing.
        kind: "nmst", eq. (1), or "st", eq. (2).
        mask: (B, T) bool, True where the next token belongs to the target; None: everywhere.

    Returns:
        (B, T, V), float32 or float64; `torch.nn.functional.nll_loss` takes them as they are.

    Raises:
        ValueError: shapes do not fit, end_id or eps is out of range, or kind is unknown.

    >>> self_terminating_log_probs(torch.zeros(1, 2, 3), end_id=0, eps=0.0, kind="st").exp()
    tensor([[[0.5000, 0.2500, 0.2500],
             [0.7500, 0.1250, 0.1250]]])
    """
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floats (batch, steps, tokens), got {logits.dtype} {tuple(logits.shape)}; "
            "for single steps use SelfTerminatingHead.step"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape[:2]):
        raise ValueError(
            f"mask must be bool {tuple(logits.shape[:2])}, True where the next token belongs to the target; got "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    _check(logits.shape[-1], end_id, eps, kind)
    logits = wide(logits)
    going = nn.functional.logsigmoid(-logits[..., end_id])  # (B, T)
    rate = torch.full_like(going, math.log1p(-eps))
    if mask is not None:
        going, rate = going.masked_fill(~mask, 0.0), rate.masked_fill(~mask, 0.0)
    if kind == "nmst":
        log_keep = rate.cumsum(1) + going  # (B, T)  eq. (1)
    else:
        log_keep = (rate + going).cumsum(1)  # (B, T)  eq. (2)
    if mask is not None:
        log_keep = log_keep.masked_fill(~mask, 0.0)
    return _log_probs(logits, log_keep, end_id, mask)


def guaranteed_steps(eps: float, probability: float = 0.5) -> int:
    """Steps after which p(end) exceeds `probability` in any self-terminating model, by eq. (4).

    Args:
        eps: least rate of ending, in (0, 1).
        probability: in [0, 1); above 0.5 the end token is the most probable one, so greedy search stops.

    Returns:
        Number of target steps, the last of which has p(end) > probability.

    Raises:
        ValueError: eps or probability is out of range.

    >>> guaranteed_steps(0.01)
    69
    """
    if not (0 < eps < 1 and 0 <= probability < 1):
        raise ValueError(
            f"guaranteed_steps needs eps in (0, 1) and probability in [0, 1), got {eps} and {probability}; "
            "eps = 0 promises nothing"
        )
    return math.floor(math.log1p(-probability) / math.log1p(-eps)) + 1


class SelfTerminatingHead(nn.Module):
    r"""Hidden states to `self_terminating_log_probs`; `step` does the same token by token.

    State dict: weight (V, D) and bias (V,), as in nn.Linear, so the output layer of a trained model can be loaded. The
    end token of a new head starts out as unlikely as any other: its bias is -log V.

    Args:
        dim: D.
        vocab_size: V.
        end_id: the end token, in [0, V).
        eps: least rate of ending, in [0, 1).
        kind: "nmst" or "st".

    Raises:
        ValueError: end_id or eps is out of range, or kind is unknown.

    >>> head = SelfTerminatingHead(4, 3, end_id=2, eps=0.01)
    >>> log_probs, state = head.step(torch.zeros(1, 4), head.start(1))
    >>> bool(log_probs[0, 2].exp() >= 0.01), round(state.exp().item(), 4)
    (True, 0.99)
    """

    def __init__(self, dim: int, vocab_size: int, end_id: int, eps: float = 1e-3, kind: str = "nmst") -> None:
        super().__init__()
        _check(vocab_size, end_id, eps, kind)
        linear = nn.Linear(dim, vocab_size)
        self.weight, self.bias = linear.weight, linear.bias
        with torch.no_grad():  # at 0 half of all sequences would end at each step, and ST begin with p(others) = 2^-t
            self.bias[end_id] = -math.log(vocab_size)
        self.end_id, self.eps, self.kind = end_id, eps, kind

    def extra_repr(self) -> str:
        """What print(model) shows."""
        vocab_size, dim = self.weight.shape
        return f"{dim}, {vocab_size}, end_id={self.end_id}, eps={self.eps}, kind={self.kind!r}"

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, T, V) from hidden states (B, T, D); mask (B, T) bool as in the function."""
        logits = nn.functional.linear(hidden_states, self.weight, self.bias)  # (B, T, V)
        return self_terminating_log_probs(logits, self.end_id, self.eps, self.kind, mask)

    def start(self, rows: int) -> Tensor:
        """The state before the first token of the target, (rows,): log of what eps, and in ST z, have left so far."""
        return torch.zeros(rows, dtype=wide_dtype(self.weight), device=self.weight.device)

    def step(self, hidden_states: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (R, V) of the next token from hidden states (R, D), and the state for the step after it.

        Rows of the state follow the rows of the batch: a beam search that reorders rows indexes the state alike.
        """
        logits = nn.functional.linear(hidden_states, self.weight, self.bias)  # (R, V)
        logits = wide(logits)
        going = nn.functional.logsigmoid(-logits[:, self.end_id])  # (R,)
        state = state + math.log1p(-self.eps) + (going if self.kind == "st" else 0.0)  # (R,)
        log_keep = state if self.kind == "st" else state + going  # eq. (1), (2)
        return _log_probs(logits, log_keep, self.end_id, None), state


def _log_probs(logits: Tensor, log_keep: Tensor, end_id: int, mask: Tensor | None) -> Tensor:
    """Eq. (3); where the mask is False, p(end) is 0."""
    is_end = torch.arange(logits.shape[-1], device=logits.device) == end_id  # (V,)
    others = logits.masked_fill(is_end, -torch.inf).log_softmax(-1) + log_keep[..., None]  # (.., V)
    below_zero = log_keep.clamp(max=-torch.finfo(log_keep.dtype).tiny)  # keep = 1 to the last bit has no logarithm
    end = torch.log(-torch.expm1(below_zero))  # (..)
    if mask is not None:
        end = end.masked_fill(~mask, -torch.inf)
    return torch.where(is_end, end[..., None], others)


def _check(vocab_size: int, end_id: int, eps: float, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not 0 <= eps < 1:
        raise ValueError(
            f"eps must be in [0, 1), got {eps}; 1e-3 is usual, guaranteed_steps(eps) says what it promises"
        )
    if not 0 <= end_id < vocab_size or vocab_size < 2:
        raise ValueError(
            f"end_id must be in [0, V) for V >= 2 tokens, got {end_id} and {vocab_size}; give the id that ends a target"
        )
