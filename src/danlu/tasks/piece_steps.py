r"""Tokens with tags over the pieces of a transformer's tokenizer: which piece answers for which tokens.

    text     2 0 2 0 年   北 京                 Copenhagen
    tokens   2|0|2|0|年|北|京                   Copenhagen
    pieces   2020   |年|北|京                   cop|##en|##ha|##gen                            (1)
    steps    0       1  2  3                    0

A step is a piece and the tokens it is the first to touch; tags are learned and found for steps. A word of several
pieces speaks through its first, a piece over several tokens speaks for all of them. Spans go there by taking every step
that they touch, and back to all tokens of their steps, so that a blank or control character, which has no piece, is
part of a span that goes on behind it and of no other. Tag schemes that know no "outside" (word segmentation) need a tag
for every token: there a token without a piece gets an unknown piece of its own.

Source: Devlin et al., 2019, arXiv:1810.04805, section 5.3 (first piece of a word).
Shapes: lists by example; B batch, T pieces, S steps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from danlu.data.sequences import pad_sequences
from danlu.math.tag_scheme import spans, tags_from_spans
from danlu.tasks.encoder import Encoder
from danlu.tasks.piece_windows import PieceWindows

__all__ = ["Aligned", "StepWindows", "align", "step_tags", "token_tags"]
Span = tuple[int, int, str]


@dataclass
class Aligned:
    """Pieces and steps of one example; step i begins with piece `first[i]`, its tokens are [starts[i], stops[i])."""

    ids: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)

    def add(self, piece: int, start: int, stop: int) -> None:
        """A step of one piece and the tokens [start, stop)."""
        self.first.append(len(self.ids))
        self.starts.append(start)
        self.stops.append(stop)
        self.ids.append(piece)

    def to_steps(self, found: Sequence[Span], overlap: bool = False) -> list[Span]:
        """Spans of tokens as spans of steps; one without a step is left out, overlaps are cut unless allowed."""
        moved: list[Span] = []
        end = 0
        for a, b, kind in sorted(found):
            start = bisect_right(self.stops, a)  # the first step that reaches beyond a
            start = start if overlap else max(start, end)
            stop = bisect_left(self.starts, b)  # steps before this one begin before b
            if start < stop:
                moved.append((start, stop, kind))
                end = stop
        return moved

    def to_tokens(self, found: Sequence[Span]) -> list[Span]:
        """Spans of steps as spans of tokens."""
        return [(self.starts[a], self.stops[b - 1], kind) for a, b, kind in found]


def align(
    places: Sequence[tuple[int, int]],
    pieces: Sequence[tuple[int, tuple[int, int]]],
    unknown: int | None = None,
) -> Aligned:
    """Steps of tokens over pieces, table (1).

    Args:
        places: (start, end) of every token in the text, in order, disjoint.
        pieces: (id, (start, end)) of every piece in the same text, in order.
        unknown: id of a piece for tokens that no piece touches; None leaves them without a step.

    Returns:
        The pieces with their steps.

    >>> align([(0, 1), (1, 2), (3, 4)], [(7, (0, 2)), (8, (3, 4))])  # one piece for two tokens, a blank, one for one
    Aligned(ids=[7, 8], first=[0, 1], starts=[0, 2], stops=[2, 3])
    """
    found, after, token = Aligned(), 0, 0  # `after`: the first token without a step
    for piece, (begin, end) in pieces:
        while token < len(places) and places[token][1] <= begin:
            token += 1
        last = token
        while last < len(places) and places[last][0] < end:
            last += 1
        if token == last or last <= after:  # no token, or none that is new: it goes on with the step before it
            found.ids.append(piece)
            continue
        if token < after:
            found.stops[-1] = last
            found.ids.append(piece)
        else:
            for missed in range(after, token) if unknown is not None else ():
                found.add(unknown, missed, missed + 1)  # type: ignore[arg-type]
            found.add(piece, token, last)
        after = last
    for missed in range(after, len(places)) if unknown is not None else ():
        found.add(unknown, missed, missed + 1)  # type: ignore[arg-type]
    return found


class StepWindows(PieceWindows):
    """Windows over aligned examples, for tagging.

    Args:
        encoder: whose special tokens stand around a window.
        aligned: the examples.
        max_len: tokens of a window, special ones included.
        context: pieces a window sees of its neighbours on each side.
        tags: a number for every step, or None; a batch's weight is then its steps.
    """

    def __init__(
        self,
        encoder: Encoder,
        aligned: Sequence[Aligned],
        max_len: int,
        context: int = 0,
        tags: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(encoder, [a.ids for a in aligned], max_len, context)
        self.aligned, self.tags = aligned, tags
        has_steps = [i for i in range(len(self.windows)) if self.bounds(i)[0] < self.bounds(i)[1]]
        self.windows = [self.windows[i] for i in has_steps]
        self.lengths = [self.lengths[i] for i in has_steps]

    @property
    def steps(self) -> list[int]:
        """Tags of every example: one a step."""
        return [len(a.first) for a in self.aligned]

    def bounds(self, number: int) -> tuple[int, int]:
        """Steps [start, stop) of its example that a window holds."""
        w = self.windows[number]
        first = self.aligned[w.index].first
        return bisect_left(first, w.start), bisect_left(first, w.stop)

    def kept(self, number: int) -> tuple[int, int]:
        """Steps [start, stop) of its example that a window answers for."""
        w = self.windows[number]
        first = self.aligned[w.index].first
        return bisect_left(first, w.keep_start), bisect_left(first, w.keep_stop)

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its steps where tags are learned, else its windows."""
        if self.tags is None:
            return float(len(indices))
        return float(sum(b - a for a, b in map(self.bounds, indices)))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids and mask (B, T), the steps' first pieces "first" and their mask "steps" (B, S), and tags (B, S)."""
        batch = super().collate(indices)
        first, tags = [], []
        for i in indices:
            w, (a, b) = self.windows[i], self.bounds(i)
            shift = len(self.start) - w.start
            first.append([p + shift for p in self.aligned[w.index].first[a:b]])
            if self.tags is not None:
                tags.append(list(self.tags[w.index][a:b]))
        sizes = torch.tensor([len(row) for row in first])
        batch["first"] = pad_sequences(first)
        batch["steps"] = torch.arange(int(sizes.max())) < sizes[:, None]
        if self.tags is not None:
            batch["tags"] = pad_sequences(tags, value=-100)
        return batch


def step_tags(aligned: Aligned, tags: Sequence[str], scheme: str) -> list[str]:
    """Tags of tokens as tags of steps."""
    return tags_from_spans(aligned.to_steps(spans(tags, scheme)), len(aligned.first), scheme)


def token_tags(aligned: Aligned, tags: Sequence[str], scheme: str, tokens: int) -> list[str]:
    """Tags of steps as tags of the example's tokens."""
    return tags_from_spans(aligned.to_tokens(spans(tags, scheme)), tokens, scheme)
