"""Texts with triples as training items: pieces of the tokenizer in overlapping windows, triples in tokens.

A window knows the triples that lie wholly in it; neighbouring windows share `overlap` tokens, so that a triple no
longer than that is whole in one of them. What a model finds in the windows of a text is united, without spans that
touch an inner edge of their window, where only a part of them may be in sight.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.data.triples import Related, Relation
from danlu.tasks.encoder import Encoder
from danlu.tasks.piece_windows import PieceWindows
from danlu.text.casrel import sample_subject
from danlu.text.triple_targets import Triple

__all__ = ["TripleWindows", "token_span"]

Span = tuple[int, int]


def token_span(offsets: Sequence[Span], span: Span) -> Span | None:
    """The tokens that hold a span of characters, end exclusive; None if there are none.

    >>> token_span([(0, 2), (2, 3), (5, 9)], (1, 3)), token_span([(0, 2), (5, 9)], (2, 5))
    ((0, 2), None)
    """
    start = bisect_right(offsets, span[0], key=lambda token: token[1])  # the first that ends behind the span's start
    end = bisect_left(offsets, span[1], key=lambda token: token[0])  # the first that begins at the span's end or later
    return (start, end) if start < end else None


class TripleWindows(PieceWindows):
    """Windows over texts, with the triples of each.

    Args:
        encoder: whose tokenizer cuts the texts.
        texts: the texts.
        max_len: tokens of a window, special ones included.
        overlap: tokens that neighbouring windows share.
        examples: the texts with their triples, to train on; None to predict.
        predicates: their numbers.
        subjects: draw a subject for every window of a batch, for CasRel.
    """

    def __init__(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        max_len: int,
        overlap: int,
        examples: Sequence[Related] | None = None,
        predicates: dict[str, int] | None = None,
        subjects: bool = False,
    ) -> None:
        pieces = [encoder.tokenizer.pieces(text) for text in texts]
        super().__init__(encoder, [ids for ids, _ in pieces], max_len, context=overlap // 2)
        self.spans = [spans for _, spans in pieces]
        self.subjects = subjects
        self.triples: list[list[Triple]] = [[] for _ in self.windows]  # of every window, in its own tokens
        self.out_of_reach = 0  # triples that no window holds
        self.place: dict[int, list[int]] = {}
        for i, window in enumerate(self.windows):
            self.place.setdefault(window.index, []).append(i)
        for index, example in enumerate(examples or ()):
            for triple in example.triples:
                self._put(index, triple, predicates or {})

    def _put(self, index: int, triple: Relation, predicates: dict[str, int]) -> None:
        s, o = token_span(self.spans[index], triple.subject), token_span(self.spans[index], triple.object)
        whole = False
        if s is not None and o is not None:
            first, last = min(s[0], o[0]), max(s[1], o[1])
            for i in self.place.get(index, ()):
                window = self.windows[i]
                if window.start <= first and last <= window.stop:
                    shift = len(self.start) - window.start
                    predicate = predicates[triple.predicate]
                    self.triples[i].append((s[0] + shift, s[1] + shift, predicate, o[0] + shift, o[1] + shift))
                    whole = True
        self.out_of_reach += not whole

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its windows, or for CasRel their tokens without the special ones."""
        return float(sum(len(self.windows[i]) for i in indices) if self.subjects else len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids, mask and pieces (B, T), the mask without special tokens; triples (N, 6); subjects (S, 3) if drawn."""
        batch = super().collate(indices)
        pieces = batch["mask"].clone()
        pieces[:, : len(self.start)] = False
        for row, i in enumerate(indices):
            pieces[row, self.lengths[i] - len(self.end) : self.lengths[i]] = False
        batch["pieces"] = pieces
        rows = [(row, *triple) for row, i in enumerate(indices) for triple in self.triples[i]]
        batch["triples"] = torch.tensor(rows, dtype=torch.int64).view(-1, 6)
        if self.subjects:
            drawn = []
            for row, i in enumerate(indices):
                distinct = sorted({triple[:2] for triple in self.triples[i]})
                if distinct:
                    drawn.append((row, *sample_subject(distinct)))
            batch["subjects"] = torch.tensor(drawn, dtype=torch.int64).view(-1, 3)
        return batch

    def characters(self, i: int, triples: Sequence[Triple], names: Sequence[str]) -> set[Relation]:
        """What was found in window i, in characters of its text, without spans at an inner edge.

        Args:
            i: the window.
            triples: found in it, in its tokens.
            names: of the predicates.

        Returns:
            The triples.
        """
        window, offsets = self.windows[i], self.spans[self.windows[i].index]
        found: set[Relation] = set()
        for s, s_end, predicate, o, o_end in triples:
            sides = []
            for start, end in ((s, s_end), (o, o_end)):
                first, last = start + window.start - len(self.start), end + window.start - len(self.start)
                cut = (first == window.start > 0) or (last == window.stop < len(offsets))
                if not cut:
                    sides.append((offsets[first][0], offsets[last - 1][1]))
            if len(sides) == 2:
                found.add(Relation(sides[0], names[predicate], sides[1]))
        return found
