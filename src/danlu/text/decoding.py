r"""Greedy decoding and sampling, all prompts at once, whole or token by token.

    greedy     y_t = argmax_v logit_t[v]                                                                      (1)
    sampling   y_t ~ softmax(filter(logit_t / temperature)),   filter: top-k, then nucleus                    (2)

`greedy` and `sample` gather what `stream` yields. A row that wrote an end token leaves the batch, so that the others
cost no more than they must. Before `min_new_tokens` tokens the end tokens are forbidden. With consistent=True the
filters never remove the end tokens, and sampling stops almost surely. The scores returned are log-probabilities under
the model as it is: of temperature 1, without filters.

`adjust` changes the logits before anything else, with the tokens each row wrote so far in hand: here belong
`repetition_penalty`, `no_repeat_ngram`, constraints of one's own, a LogitsProcessor of transformers.

Source: Holtzman et al., 2019, arXiv:1904.09751; Welleck et al., 2020, arXiv:2002.02492; kexue.fm/archives/7500.
Shapes: B prompts, S samples of each, R = B S rows, V vocabulary, T tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.text.generated import Generated, demand_logits, end_ids
from danlu.text.sampling_filters import draw, forbid, top_k_filter, top_p_filter
from danlu.text.steps import Steps

__all__ = ["greedy", "sample", "stream"]

Adjust = Callable[[Tensor, Tensor], Tensor]  # tokens so far (R, n), logits (R, V) -> logits


def greedy(
    steps: Steps,
    *,
    end_id: int | Sequence[int] | None,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    adjust: Adjust | None = None,
) -> Generated:
    """The most probable token at each step, eq. (1).

    Args:
        steps: the model and its prompts.
        end_id: token that ends an answer, several, or None: write on.
        max_new_tokens: length at which an answer is cut.
        min_new_tokens: tokens an answer has before its end token at least.
        adjust: changes logits (R, V), given the tokens (R, n) written so far; None: as they are.

    Returns:
        One answer a prompt.

    Raises:
        ValueError: an end_id outside the vocabulary, limits without room, or logits that are nan (row and step named).

    >>> from danlu.text.steps import FunctionSteps
    >>> count = FunctionSteps(lambda ids: torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), [[0], [2]])
    >>> greedy(count, end_id=4, max_new_tokens=3).best()
    [[1, 2, 3], [3]]
    """
    rule = _Rule("greedy", steps, end_id, max_new_tokens, min_new_tokens, temperature=0.0, adjust=adjust)
    return _gather(rule)


def sample(
    steps: Steps,
    *,
    end_id: int | Sequence[int] | None,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_new_tokens: int = 0,
    consistent: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    num_samples: int = 1,
    adjust: Adjust | None = None,
) -> Generated:
    """Tokens drawn from the model, eq. (2).

    Args:
        steps: the model and its prompts.
        end_id: token that ends an answer, several, or None: write on.
        max_new_tokens: length at which an answer is cut.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: draw from this many most probable tokens; None: from all.
        top_p: draw from the fewest tokens of this probability together, in (0, 1]; None: from all.
        min_new_tokens: tokens an answer has before its end token at least.
        consistent: top_k and top_p never remove the end tokens.
        generator: source of randomness; one a row (B * num_samples) makes each row the same in any batch; None takes
            torch's own.
        num_samples: answers of each prompt, which is read only once.
        adjust: changes logits (R, V), given the tokens (R, n) written so far; None: as they are.

    Returns:
        `num_samples` answers a prompt, in the order drawn.

    Raises:
        ValueError: a setting outside its range, or logits that are nan or leave no token (row and step named).

    >>> from danlu.text.steps import FunctionSteps
    >>> count = FunctionSteps(lambda ids: torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), [[0], [2]])
    >>> sample(count, end_id=4, max_new_tokens=3, top_k=1, num_samples=2).answers()
    [[[1, 2, 3], [1, 2, 3]], [[3], [3]]]
    """
    rule = _Rule(
        "sample", steps, end_id, max_new_tokens, min_new_tokens, temperature, top_k, top_p, consistent, generator,
        num_samples, adjust,
    )  # fmt: skip
    return _gather(rule)


def stream(
    steps: Steps,
    *,
    end_id: int | Sequence[int] | None,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_new_tokens: int = 0,
    consistent: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    num_samples: int = 1,
    adjust: Adjust | None = None,
) -> Iterator[Tensor]:
    """The tokens of `sample` as they are drawn; of `greedy` with temperature=0.

    Args:
        steps: the model and its prompts, as of `sample` like all that follows.
        end_id: see there.
        max_new_tokens: see there.
        temperature: see there.
        top_k: see there.
        top_p: see there.
        min_new_tokens: see there.
        consistent: see there.
        generator: see there.
        num_samples: see there.
        adjust: see there.

    Returns:
        An iterator over (R,) int64, the samples of a prompt side by side; -1 in rows that have ended. It ends when
        every row has; the model runs between two tokens, not ahead.

    Raises:
        ValueError: a setting outside its range; later logits that are nan or leave no token (row and step named).

    >>> from danlu.text.steps import FunctionSteps
    >>> count = FunctionSteps(lambda ids: torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), [[0], [2]])
    >>> [tokens.tolist() for tokens in stream(count, end_id=4, max_new_tokens=3, temperature=0)]
    [[1, 3], [2, 4], [3, -1]]
    """
    rule = _Rule(
        "stream", steps, end_id, max_new_tokens, min_new_tokens, temperature, top_k, top_p, consistent, generator,
        num_samples, adjust,
    )  # fmt: skip
    return (tokens for tokens, _ in _write(rule))


@dataclass
class _Rule:
    """Settings of one decoding, checked."""

    name: str
    steps: Steps
    end_id: int | Sequence[int] | None
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    consistent: bool = False
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    num_samples: int = 1
    adjust: Adjust | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"{self.name}: temperature must be >= 0 and finite, got {self.temperature}; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"{self.name}: top_k must be at least 1, got {self.top_k}; for no limit leave it None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"{self.name}: top_p must lie in (0, 1], got {self.top_p}; for no limit leave it None")
        if self.num_samples < 1:
            raise ValueError(f"{self.name}: num_samples must be at least 1, got {self.num_samples}")
        self.end = end_ids(self.name, self.end_id, self.steps.vocab_size, self.min_new_tokens, self.max_new_tokens)

    def uniforms(self, rows: int) -> Tensor | None:
        """A number for each row and step, (R, T): drawn first, so that no row's depend on when another ends."""
        if self.temperature == 0:
            return None
        if self.generator is None or isinstance(self.generator, torch.Generator):
            return _random(self.max_new_tokens, rows, self.generator).T  # time first: a greater limit only adds to it
        if len(self.generator) != rows:
            raise ValueError(
                f"{self.name}: {len(self.generator)} generators for {rows} rows (prompts times num_samples); give one "
                "a row, or a single one for all"
            )
        return torch.cat([_random(1, self.max_new_tokens, g) for g in self.generator])

    def choose(
        self, logits: Tensor, written: Tensor | None, step: int, uniform: Tensor | None, alive: Tensor
    ) -> Tensor:
        """The next token of every row that is alive."""
        allowed = logits
        if self.adjust is not None and written is not None:
            allowed = self.adjust(written, allowed)
        if step < self.min_new_tokens:
            allowed = forbid(allowed, self.end)
        if uniform is not None:
            keep = self.end if self.consistent else None
            allowed = allowed / self.temperature
            if self.top_k is not None:
                allowed = top_k_filter(allowed, self.top_k, keep)
            if self.top_p is not None:
                allowed = top_p_filter(allowed, self.top_p, keep)
        top, best = allowed.max(-1)
        demand_logits(self.name, top, step, alive)
        return best if uniform is None else draw(allowed, uniform)  # eq. (1), eq. (2)


def _random(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand((rows, columns), generator=generator, dtype=torch.float64, device=device)


def _write(rule: _Rule) -> Iterator[tuple[Tensor, Tensor]]:
    """Token and log-probability of every row, step by step; -1 and 0 where the row has ended."""
    steps, rows = rule.steps, rule.steps.rows * rule.num_samples
    uniform = rule.uniforms(rows)
    alive = torch.arange(rows)
    tokens = written = None
    for t in range(rule.max_new_tokens):
        with torch.no_grad():
            logits = steps.step(tokens)
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            if t == 0:
                alive, rule.end = alive.to(logits.device), rule.end.to(logits.device)
                uniform = None if uniform is None else uniform.to(logits.device)
                if rule.num_samples > 1:
                    each = torch.arange(steps.rows, device=logits.device).repeat_interleave(rule.num_samples)
                    steps.reorder(each)
                    logits = logits[each]
                if rule.adjust is not None:
                    written = alive.new_empty((rows, 0))
            tokens = rule.choose(logits, written, t, None if uniform is None else uniform[alive, t], alive)
            log_prob = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
            all_tokens = torch.full((rows,), -1, dtype=torch.int64, device=logits.device).index_copy_(0, alive, tokens)
            all_log_prob = logits.new_zeros(rows).index_copy_(0, alive, log_prob)
        yield all_tokens, all_log_prob
        if t + 1 == rule.max_new_tokens:
            return
        if written is not None:
            written = torch.cat([written, tokens[:, None]], dim=1)
        going = torch.isin(tokens, rule.end, invert=True)
        if not bool(going.all()):
            left = going.nonzero()[:, 0]
            if not len(left):
                return
            steps.reorder(left)
            alive, tokens = alive[left], tokens[left]
            written = None if written is None else written[left]


def _gather(rule: _Rule) -> Generated:
    """All that `_write` yields as (B, S, T)."""
    prompts = rule.steps.rows
    written = list(_write(rule))
    tokens = torch.stack([tokens for tokens, _ in written], dim=1)  # (R, T)
    scores = torch.stack([log_prob for _, log_prob in written], dim=1).sum(1)
    shape = (prompts, rule.num_samples)
    return Generated(
        tokens.reshape(*shape, -1),
        (tokens >= 0).sum(1).reshape(shape),
        scores.reshape(shape),
        torch.isin(tokens, rule.end).any(1).reshape(shape),
    )
