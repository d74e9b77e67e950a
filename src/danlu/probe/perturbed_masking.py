r"""Perturbed masking: how much every word of a sentence matters to every other one, by any masked language model.

    F_ab = d( v_a(hide a), v_a(hide a and b) ),   F_aa = 0                                                     (1)
    v_a = mean of the hidden states at the pieces of word a, all of them hidden                                 (2)

hide S replaces every piece of the words S by [MASK]. d is one of

    euclid   ||x - y||              cos   1 - x.y / ||x|| ||y||                                                  (3)
    prob     P(a | hide a) - P(a | hide a and b), the mean over the pieces of a; may be negative                 (4)

`row` says how several pieces make one number: the distance of the means (2), "mean_distance", the mean over pieces of
their distances, or "first", that of the first piece.

The row that hides a and b serves F_ab and F_ba alike, and one that hides a serves all of row a: W words take
W (W + 1) / 2 rows, neighbours alone 2 W - 1, where the paper's code runs (T + 2)^2 rows of T pieces and two special
tokens. Rows of many sentences share a batch, and of each row only the vectors of the hidden words are kept.

Nothing is trained and no head is needed but for (4). Special tokens stay and have no row. The model sees more masks
than in training where words are long; impacts depend on the scale of its vectors, so thresholds never carry over.

Source: Wu et al., 2020, arXiv:2004.14786; rows shared and words as spans: kexue.fm/archives/7476.
Shapes: S sentences, W words, T tokens with the special ones, R rows of a batch, P pieces of a word, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.probe._masked_states import States, evaluating, states_reader
from danlu.probe.pieces import Pieces

__all__ = ["DISTANCES", "ROWS", "impact_matrix", "neighbour_scores"]

DISTANCES = ("euclid", "cos", "prob")
ROWS = ("mean_vector", "mean_distance", "first")
_GROUP = 64  # sentences whose single rows are kept at a time


def impact_matrix(
    model: Callable[..., Any],
    sentences: Sequence[Pieces],
    mask_id: int,
    distance: str = "euclid",
    row: str = "mean_vector",
    pairs: str = "all",
    layers: Sequence[int] | None = None,
    token_budget: int = 16_384,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Impacts between the words of each sentence, eq. (1).

    Args:
        model: a danlu or HuggingFace encoder, or any callable of (ids (R, T) int64, mask (R, T) bool, True for tokens)
            that returns hidden states (R, T, D), or logits (R, T, V) for "prob", or a list of them, one a layer. A
            module is run in evaluation mode and then put back.
        sentences: what `word_pieces` or `text_pieces` returned; the texts are not read.
        mask_id: id of [MASK].
        distance: "euclid", "cos" or "prob".
        row: "mean_vector", "mean_distance" or "first".
        pairs: "all", or "neighbours" for words side by side only (2 W - 1 rows; other entries stay 0).
        layers: numbers of the hidden states wanted, 0 before the first layer and -1 after the last, at no further cost;
            None: what the model returns.
        token_budget: tokens of a batch, padding included; one row at least is run. Changes rounding only.
        device: where the model runs; None: where its first parameter is, or the CPU.

    Returns:
        One (W, W) tensor a sentence on the CPU, [a, b] what hiding b does to a, float32 (float64 of a float64 model);
        (K, W, W) where K layers were asked for or returned in a list.

    Raises:
        ValueError: an unknown option, a word without pieces or with some of another word's, a sentence longer than
            the model's positions, a model that returns something else, or one that reads from left to right only.

    >>> def model(ids, mask):  # everybody sees the sum of all ids
    ...     return (ids * mask).sum(1)[:, None, None].expand(*ids.shape, 1).float()
    >>> impact_matrix(model, [Pieces((3, 5, 7), ((0,), (1,), (2,)), ("a", "b", "c"))], mask_id=0)[0]
    tensor([[0., 5., 7.],
            [3., 0., 7.],
            [3., 5., 0.]])
    """
    for name, value, allowed in (
        ("distance", distance, DISTANCES),
        ("row", row, ROWS),
        ("pairs", pairs, ("all", "neighbours")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if token_budget < 1 or (distance == "prob" and layers is not None):
        raise ValueError(
            f"token_budget must be at least 1, and distance='prob' reads the last layer only; got {token_budget} and "
            f"layers={layers}"
        )
    if layers is not None and not len(layers):
        raise ValueError("layers must name at least one of the hidden states, such as [-1]; None takes the last")
    sentences = list(sentences)
    for number, sentence in enumerate(sentences):
        _check(number, sentence, model)
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
    read = states_reader(model, layers, distance == "prob")
    found: dict[int, Tensor] = {}
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].ids))
    with evaluating(model):
        for start in range(0, len(order), _GROUP):
            group = order[start : start + _GROUP]
            table = _Table([sentences[i] for i in group], mask_id, torch.device(device))
            impacts = _impacts(read, table, distance, row, pairs, token_budget, len(layers or (0,)))
            found |= zip(group, impacts, strict=True)
    stacked = layers is not None or any(impact.shape[0] > 1 for impact in found.values())
    if distance != "prob":
        _refuse_causal(list(found.values()))
    return [found[i] if stacked else found[i][0] for i in range(len(sentences))]


def neighbour_scores(impact: Tensor) -> Tensor:
    """How strongly words side by side hold together, (F[i, i+1] + F[i+1, i]) / 2; low ones are where a text is cut.

    Args:
        impact: (..., W, W) of `impact_matrix`, with all pairs or the neighbours.

    Returns:
        (..., W - 1), or (..., 0) for fewer than two words.

    >>> neighbour_scores(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    tensor([2.])
    """
    return (impact.diagonal(1, -2, -1) + impact.diagonal(-1, -2, -1)) / 2


class _Table:
    """Sentences of a group as padded tensors, and the rows that hide one word or two."""

    def __init__(self, sentences: Sequence[Pieces], mask_id: int, device: torch.device) -> None:
        self.mask_id, self.device = mask_id, device
        self.words = [len(s.units) for s in sentences]
        self.lengths = torch.tensor([len(s.ids) for s in sentences])
        longest = int(self.lengths.max())
        self.ids = torch.tensor([[*s.ids, *[0] * (longest - len(s.ids))] for s in sentences])  # (S, T)
        widest = max((len(unit) for s in sentences for unit in s.units), default=1)
        self.first = torch.tensor([0, *self.words]).cumsum(0)  # (S + 1,) where the words of a sentence begin
        rows = [[*unit, *[-1] * (widest - len(unit))] for s in sentences for unit in s.units]
        self.places = torch.tensor(rows, dtype=torch.int64).view(-1, widest)  # (words of all sentences, P), -1 for none

    def pairs(self, neighbours: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sentence, word and other word of every row that hides two, words numbered through all sentences."""
        parts = []
        for s, words in enumerate(self.words):
            a, b = torch.triu_indices(words, words, 1)
            keep = (b == a + 1) if neighbours else torch.ones_like(a, dtype=torch.bool)
            a, b = a[keep] + self.first[s], b[keep] + self.first[s]
            parts.append((torch.full_like(a, s), a, b))
        sentence, a, b = (torch.cat(column) for column in zip(*parts, strict=True))
        return sentence, a, b

    def chunks(self, sentence: Tensor, token_budget: int) -> Iterator[slice]:
        """Runs of rows, sorted by length as the sentences are, that fit the budget with their padding."""
        lengths, start = self.lengths[sentence].tolist(), 0
        for end in range(1, len(lengths) + 1):
            if end == len(lengths) or (end + 1 - start) * lengths[end] > token_budget:
                yield slice(start, end)
                start = end

    def states(self, read: States, sentence: Tensor, *words: Tensor) -> list[list[Tensor]]:
        """For each of the hidden words the states (R, P, D) at its pieces, by layer."""
        length = int(self.lengths[sentence].max())
        truth = self.ids[sentence, :length]  # (R, T)
        hidden = torch.zeros(len(sentence), length + 1, dtype=torch.bool)  # the last column takes the absent pieces
        for word in words:
            places = self.places[word]  # (R, P)
            hidden.scatter_(1, torch.where(places < 0, length, places), True)
        hidden = hidden[:, :length]
        mask = torch.arange(length) < self.lengths[sentence][:, None]
        ids = torch.where(hidden, self.mask_id, truth)
        out = read(*(x.to(self.device) for x in (ids, mask, hidden, truth)))
        gathered = []
        for word in words:
            places = self.places[word].clamp_min(0).to(self.device)[:, :, None]  # (R, P, 1)
            gathered.append([wide(s.gather(1, places.expand(-1, -1, s.shape[2]))) for s in out])
        return gathered


def _impacts(read: States, table: _Table, distance: str, row: str, pairs: str, budget: int, kinds: int) -> list[Tensor]:
    """(K, W, W) of each sentence of the table, on the CPU."""
    sentence, a, b = table.pairs(pairs == "neighbours")
    alone = torch.cat([a, b]).unique()  # words that have a pair
    owner = torch.searchsorted(table.first, alone, right=True) - 1
    if not len(alone):
        return [torch.zeros(kinds, w, w) for w in table.words]
    singles: list[list[Tensor]] = []
    for part in table.chunks(owner, budget):
        singles.append(_pooled(table.states(read, owner[part], alone[part])[0], table.places[alone[part]], row))
    base = [torch.cat(parts) for parts in zip(*singles, strict=True)]  # by layer, (words, P or 1, D)
    place = torch.zeros(int(table.first[-1]), dtype=torch.int64)
    place[alone] = torch.arange(len(alone))
    values = [base[0].new_zeros(int(table.first[-1]), max(table.words), device="cpu") for _ in base]
    for part in table.chunks(sentence, budget):
        for word, other, states in zip(
            (a[part], b[part]), (b[part], a[part]), table.states(read, sentence[part], a[part], b[part]), strict=True
        ):
            at = place[word].to(table.device)
            column = other - table.first[sentence[part]]
            for k, state in enumerate(_pooled(states, table.places[word], row)):
                values[k][word, column] = _distance(base[k][at], state, table.places[word], distance).cpu()  # eq. (1)
    cut = [slice(start, start + w) for start, w in zip(table.first.tolist(), table.words, strict=False)]
    return [torch.stack([v[rows, :w] for v in values]) for rows, w in zip(cut, table.words, strict=True)]


def _pooled(states: list[Tensor], places: Tensor, row: str) -> list[Tensor]:
    """What stands for a word, (R, P, D) or (R, 1, D), by layer."""
    if row == "first":
        return [s[:, :1] for s in states]
    if row == "mean_distance":
        return states
    real = (places >= 0)[:, :, None].to(states[0].device)
    return [torch.where(real, s, 0.0).sum(1, keepdim=True) / real.sum(1, keepdim=True) for s in states]  # eq. (2)


def _distance(x: Tensor, y: Tensor, places: Tensor, distance: str) -> Tensor:
    """Mean over pieces of their distances, (R,)."""
    if distance == "cos":
        each = (1 - F.cosine_similarity(x, y, dim=-1)).clamp_min(0)  # (R, P)  eq. (3)
    elif distance == "prob":
        each = (x - y)[:, :, 0]  # eq. (4)
    else:
        each = torch.linalg.vector_norm(x - y, dim=-1)  # eq. (3)
    if each.shape[1] == 1:
        return each[:, 0]
    real = (places >= 0).to(each.device)
    return torch.where(real, each, 0.0).sum(1) / real.sum(1)


def _check(number: int, sentence: Pieces, model: Any) -> None:
    flat = [position for unit in sentence.units for position in unit]
    if any(not unit for unit in sentence.units) or len(set(flat)) != len(flat):
        raise ValueError(f"sentence {number} has a word without pieces, or two words that share one: {sentence.units}")
    if any(not 0 <= position < len(sentence.ids) for position in flat):
        raise ValueError(
            f"sentence {number} has words at positions {min(flat)} to {max(flat)}, but {len(sentence.ids)} tokens"
        )
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < len(sentence.ids):
        raise ValueError(
            f"sentence {number} has {len(sentence.ids)} tokens, more than the {limit} positions of the model; cut it"
        )


def _refuse_causal(found: Sequence[Tensor]) -> None:
    """A model in which no word ever sees a later one has no impacts of this kind."""
    above = max((float(impact.triu(1).abs().max()) for impact in found if impact.shape[-1] > 1), default=0.0)
    below = max((float(impact.tril(-1).abs().max()) for impact in found if impact.shape[-1] > 1), default=0.0)
    if above <= 1e-5 * below and below > 0:
        raise ValueError(
            "no word is touched by any later one: this model reads from left to right only, and perturbed masking "
            "needs one that fills gaps (a masked language model)"
        )
