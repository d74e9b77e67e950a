r"""Beam search: the answers a model finds most probable, approximately, with finished ones kept and compared.

    s(y_1..y_n) = sum_t log p(y_t | y_<t),      score(y) = s(y) / n^a                                         (1)
    a beam of k: of all one-token continuations of k prefixes the k best by s go on                           (2)
    stop when the worst answer kept >= max over beams and lengths L in (n, T] of s / L^a                      (3)
    group g ranks by s(y) - d sum_t (number of beams in groups before g that took y_t at step t)              (4)

An answer is complete when an end token is among the k best continuations; it is put aside, scored by (1), and its place
goes to the next best, so that k prefixes are always alive. s never rises, hence (3): stopping there changes nothing of
what is returned. Other libraries stop sooner, by a guess: early_stopping="heuristic" takes the present length for L,
early_stopping=True stops at k complete answers. With k >= V^(T-1) the search is exhaustive; with k = 1 and a = 0 (or
early_stopping=True) it is greedy decoding.

a = 1 is the mean log-probability of a token; a = 0 the log-probability itself, which favours short answers (bert4keras,
which also drops complete answers instead of comparing them: `danlu.text.AutoRegressiveDecoder`). With groups, each has
k / groups beams and its own answers; the penalty (4) steers the search and stays out of the scores.

`adjust` acts on log-probabilities, which are not renormalised after it, nor after end tokens were forbidden: scores
remain the model's. It must not raise any, or (3) fails.

Source: Graves, 2012, arXiv:1211.3711; length: Wu et al., 2016, arXiv:1609.08144; (3): Huang et al., 2017, EMNLP;
(4): Vijayakumar et al., 2016, arXiv:1610.02424.
Shapes: B prompts alive, G groups, k beams of a group, V vocabulary, n tokens so far, N answers asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.text.generated import Generated, demand_logits, end_ids
from danlu.text.sampling_filters import forbid
from danlu.text.steps import Steps

__all__ = ["beam_search"]


@torch.no_grad()
def beam_search(
    steps: Steps,
    *,
    end_id: int | Sequence[int] | None,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    num_return: int = 1,
    groups: int = 1,
    diversity: float = 0.0,
    min_new_tokens: int = 0,
    early_stopping: bool | str = False,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Generated:
    """The best answers that `num_beams` prefixes at a time lead to, eqs. (1) to (4).

    Args:
        steps: the model and its prompts.
        end_id: token that ends an answer, several, or None: write on.
        num_beams: prefixes followed for each prompt, of all groups together.
        max_new_tokens: length T at which an answer is cut.
        length_penalty: a; 0 compares log-probabilities, 1 their means, more favours long answers.
        num_return: answers of each prompt, at most num_beams; with groups as many from each as possible.
        groups: parts of the beams that search apart; divides num_beams.
        diversity: d, what a token costs that a group before has just taken, in nats.
        min_new_tokens: tokens an answer has before its end token at least.
        early_stopping: False stops when nothing better can come, "heuristic" when nothing better seems to, True at the
            first num_beams complete answers.
        adjust: lowers log-probabilities (R, V), given the tokens (R, n) written so far; None: as they are.

    Returns:
        `num_return` answers a prompt, best score first.

    Raises:
        ValueError: a setting outside its range, or logits that are nan (prompt and step named).

    >>> from danlu.text.steps import FunctionSteps
    >>> table = torch.tensor([[0.0, 0.6, 0.4], [0.1, 0.5, 0.4], [0.0, 0.0, 1.0]]).log()  # p(next | last)
    >>> beams = beam_search(FunctionSteps(lambda ids: table[ids], [[0]]), end_id=2, num_beams=2, max_new_tokens=2,
    ...                     length_penalty=0.0, num_return=2)
    >>> beams.answers(), beams.scores.exp()  # the best token, 1, does not begin the best answer, the end at once
    ([[[], [1, 1]]], tensor([[0.4000, 0.3000]]))
    """
    _check(num_beams, length_penalty, num_return, groups, diversity, early_stopping)
    end = end_ids("beam_search", end_id, steps.vocab_size, min_new_tokens, max_new_tokens)
    beams, prompts = num_beams // groups, steps.rows
    width = beams * max(2, 1 + len(end))  # so that k go on even where every end token is among the best
    last = None
    for t in range(max_new_tokens):
        logits = steps.step(last)  # (B G k, V); one row a prompt at first
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if t == 0:
            end = end.to(logits.device)
            alive = torch.arange(prompts, device=logits.device)  # the prompts still searched, (B,)
            answers = _Answers(prompts, groups, beams, max_new_tokens, length_penalty, logits)
            written = alive.new_empty((prompts, 1, 1, 0))  # (B, G, k, n)
            raw = rank = logits.new_zeros((prompts, 1, 1))  # s of eq. (1); s less the penalties of eq. (4)
        demand_logits("beam_search", logits.amax(-1), t, alive.repeat_interleave(len(logits) // len(alive)))
        log_probs = logits.log_softmax(-1)
        if adjust is not None:
            log_probs = adjust(written.flatten(0, 2), log_probs)
        if t < min_new_tokens:
            log_probs = forbid(log_probs, end)
        log_probs = log_probs.unflatten(0, raw.shape)  # (B, G, k, V)
        if diversity:
            taken = log_probs.new_zeros((len(alive), log_probs.shape[-1]))  # (B, V) beams of earlier groups at a token
        chosen = []
        for g in range(groups):
            h = min(g, raw.shape[1] - 1)  # all groups begin with the same prefix
            penalty = diversity * taken if diversity and g else None
            best, parent, token, new_raw = _extend(log_probs[:, h], raw[:, h], rank[:, h], penalty, width)
            ended = torch.isin(token, end)  # (B, width)
            complete = (best > -torch.inf) & (ended | (t + 1 == max_new_tokens))
            if bool(complete[:, :beams].any()):
                answers.add(alive, g, written[:, h], parent, token, new_raw.masked_fill(~complete, -torch.inf))
            new_rank, place = best.masked_fill(ended, -torch.inf).topk(beams, dim=1)  # (B, k)  eq. (2)
            new_raw = new_raw.gather(1, place).masked_fill(new_rank == -torch.inf, -torch.inf)
            parent, token = parent.gather(1, place), token.gather(1, place)
            if diversity:
                taken.scatter_add_(1, token, (new_rank > -torch.inf).to(taken))
            chosen.append((new_rank, new_raw, h * raw.shape[2] + parent, token))
        rank, raw, parent, token = (torch.stack(parts, dim=1) for parts in zip(*chosen, strict=True))  # (B, G, k)
        if t + 1 == max_new_tokens:
            break
        before = log_probs.shape[1] * log_probs.shape[2]  # rows of a prompt until now
        rows = parent + before * torch.arange(len(alive), device=parent.device)[:, None, None]
        written = torch.cat([written.flatten(0, 2)[rows], token[..., None]], dim=-1)
        settled = answers.settled(alive, raw.amax(-1), t + 1, num_return, early_stopping)  # (B,)
        if bool(settled.any()):
            going = (~settled).nonzero()[:, 0]
            if not len(going):
                break
            alive, rank, raw, rows, written = alive[going], rank[going], raw[going], rows[going], written[going]
        last = written[..., -1].flatten()
        if len(last) != len(logits) or not torch.equal(rows.flatten(), torch.arange(len(last), device=rows.device)):
            steps.reorder(rows.flatten())
    return answers.best(num_return, end)


def _extend(
    log_probs: Tensor, raw: Tensor, rank: Tensor, penalty: Tensor | None, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations (B, width) of the prefixes of one group: what they rank by, prefix, token, s."""
    ranked = log_probs if penalty is None else log_probs - penalty[:, None]  # (B, k, V)  eq. (4)
    some = min(width, ranked.shape[-1])
    value, token = ranked.topk(some, dim=-1)  # (B, k, some): no more of any one prefix can be among the best
    value = (value + rank[..., None]).flatten(1)
    best, place = value.topk(min(width, value.shape[1]), dim=1)
    parent, token = place // some, token.flatten(1).gather(1, place)
    chosen = log_probs.flatten(1).gather(1, parent * log_probs.shape[-1] + token)
    new_raw = raw.gather(1, parent) + chosen  # eq. (1)
    missing = (0, width - best.shape[1])  # a vocabulary may be smaller than the number of beams
    return (
        F.pad(best, missing, value=-torch.inf), F.pad(parent, missing), F.pad(token, missing),
        F.pad(new_raw, missing, value=-torch.inf),
    )  # fmt: skip


class _Answers:
    """The k best complete answers of every prompt and group, best first; score -inf where there are fewer."""

    def __init__(self, prompts: int, groups: int, beams: int, longest: int, power: float, like: Tensor) -> None:
        self.scores = like.new_full((prompts, groups, beams), -torch.inf)
        self.tokens = torch.full((prompts, groups, beams, longest), -1, dtype=torch.int64, device=like.device)
        self.longest, self.power = longest, power

    def add(self, alive: Tensor, g: int, written: Tensor, parent: Tensor, token: Tensor, raw: Tensor) -> None:
        """Put the complete ones (s above -inf) among the continuations of a group's prefixes beside those kept."""
        beams, length = self.scores.shape[2], written.shape[2] + 1
        parent, token, raw = parent[:, :beams], token[:, :beams], raw[:, :beams]
        whole = torch.cat([written.gather(1, parent[..., None].expand(-1, -1, length - 1)), token[..., None]], dim=2)
        scores = torch.cat([self.scores[alive, g], raw / length**self.power], dim=1)  # (B, 2 k)  eq. (1)
        tokens = torch.cat([self.tokens[alive, g], F.pad(whole, (0, self.longest - length), value=-1)], dim=1)
        self.scores[alive, g], place = scores.topk(beams, dim=1)
        self.tokens[alive, g] = tokens.gather(1, place[..., None].expand(-1, -1, self.longest))

    def settled(self, alive: Tensor, raw: Tensor, length: int, wanted: int, early: bool | str) -> Tensor:
        """Whether the search for each prompt may stop; `raw` (B, G) is the best s of prefixes of `length` tokens."""
        scores = self.scores[alive]
        if early is True:
            return ((scores[..., -1] > -torch.inf) | (raw == -torch.inf)).all(1)
        if early == "heuristic":
            return (scores[..., -1] >= raw / length**self.power).all(1)
        reach = raw / (self.longest if self.power > 0 else length + 1) ** self.power
        return (scores[..., -(-wanted // scores.shape[1]) - 1] >= reach).all(1)  # eq. (3)

    def best(self, wanted: int, end: Tensor) -> Generated:
        """The answers asked for: every group's best, then every group's second, ..., sorted by score."""
        scores = self.scores.transpose(1, 2).flatten(1)  # (B, k G)
        tokens = self.tokens.transpose(1, 2).flatten(1, 2)
        order = (scores == -torch.inf).to(torch.int8).argsort(dim=1, stable=True)[:, :wanted]
        scores, place = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        order = order.gather(1, place)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, self.longest))
        tokens = tokens.masked_fill(scores[..., None] == -torch.inf, -1)
        lengths = (tokens >= 0).sum(2)
        return Generated(tokens[..., : int(lengths.max())], lengths, scores, torch.isin(tokens, end).any(2))


def _check(
    num_beams: int, length_penalty: float, num_return: int, groups: int, diversity: float, early: bool | str
) -> None:
    if num_beams < 1 or not 1 <= num_return <= num_beams:
        raise ValueError(
            f"beam_search needs num_beams >= 1 and num_return between 1 and it; got {num_beams} and {num_return}"
        )
    if groups < 1 or num_beams % groups:
        raise ValueError(f"groups must divide num_beams; got {groups} groups for {num_beams} beams")
    if not diversity >= 0 or (diversity and groups == 1):
        raise ValueError(
            f"diversity must be >= 0 and acts between groups; got {diversity} with groups={groups}; give groups=2 or "
            "more"
        )
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be finite, got {length_penalty}; 0 compares log-probabilities")
    if early not in (False, True, "heuristic"):
        raise ValueError(f'early_stopping must be False, True or "heuristic"; got {early!r}')
