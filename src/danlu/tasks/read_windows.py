"""Questions and their contexts as windows: what the two readers are trained and asked on, and the way back to the text.

A long context is read through windows that overlap, so that no answer up to the overlap's length is cut by a border of
all of them. A window remembers where its tokens stand in the context: answers come back as places, never as words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.batching import windows
from danlu.data.reading import Answer, places
from danlu.data.sequences import pad_sequences
from danlu.math.evidence_features import evidence_features
from danlu.tasks.windowed import Windowed
from danlu.text import CharVocab
from danlu.text.tokenizer import PairEncoder

__all__ = ["Asked", "CharWindows", "EncoderWindows"]


@dataclass(frozen=True)
class Asked:
    """A question, the contexts to look in, and for training the answer in the first of them."""

    question: str
    contexts: tuple[str, ...]
    answer: Answer | None = None


@dataclass(frozen=True)
class Place:
    """Which context of which question a window belongs to."""

    asked: int
    context: int


class CharWindows:
    """Characters for the DGCNN reader: a window of the context beside the whole question.

    Args:
        vocab: numbers characters and their pairs.
        asked: questions; a window whose context holds the answer has ones where it starts and ends, at every place.
        config: "max_len", "max_question", "overlap", "features".
    """

    def __init__(self, vocab: CharVocab, asked: Sequence[Asked], config: dict[str, Any]) -> None:
        self.vocab = vocab
        self.places = [Place(i, c) for i, one in enumerate(asked) for c in range(len(one.contexts))]
        contexts = [asked[place.asked].contexts[place.context] for place in self.places]
        context = min(config["overlap"] // 2, (config["max_len"] - 1) // 4)
        self.passages = Windowed(vocab, contexts, config["max_len"], context)
        self.lengths = self.passages.lengths
        most = config["max_question"]
        questions = [one.question[:most] for one in asked]
        self.cut = [most if len(one.question) > most else 0 for one in asked]  # tokens read of a longer one
        self.questions, self.question_bigrams = vocab.encode(questions)
        self.features = self._features(questions, contexts) if config["features"] else None
        self.marks = [self._marks(asked[place.asked]) for place in self.places]

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its characters."""
        return float(sum(self.lengths[i] for i in indices))

    def place(self, item: int) -> Place:
        """The context that a window is of."""
        return self.places[self.passages.windows[item].index]

    def characters(self, item: int, first: int, last: int) -> tuple[int, int]:
        """Where tokens first to last of a window stand in the context, end exclusive."""
        start = self.passages.windows[item].start
        return start + first, start + last + 1

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """tokens, bigrams, mask (B, T) of the windows, the same of the questions, features, start and end (B, T)."""
        batch = self.passages.collate(indices)
        which = [self.place(i).asked for i in indices]
        sizes = torch.tensor([len(self.questions[i]) for i in which])
        batch["question"] = pad_sequences([self.questions[i] for i in which])
        batch["question_bigrams"] = pad_sequences([self.question_bigrams[i] for i in which])
        batch["question_mask"] = torch.arange(batch["question"].shape[1]) < sizes[:, None]
        if self.features is not None:
            batch["features"] = pad_sequences([self.features[i] for i in indices])
        start, end = torch.zeros(batch["mask"].shape), torch.zeros(batch["mask"].shape)
        for row, item in enumerate(indices):
            window = self.passages.windows[item]
            for begin, stop in self.marks[window.index]:
                if window.start <= begin and stop <= window.stop:
                    start[row, begin - window.start] = 1.0
                    end[row, stop - 1 - window.start] = 1.0
        return {**batch, "start": start, "end": end}

    def _marks(self, one: Asked) -> list[tuple[int, int]]:
        return [] if one.answer is None else places(one.contexts[0], one.answer.text)

    def _features(self, questions: Sequence[str], contexts: Sequence[str]) -> list[Tensor]:
        """(length, 4) of every window; the other windows of a question are its other passages."""
        found: list[Tensor] = [torch.zeros(0, 4)] * len(self.lengths)
        of_question: dict[int, list[int]] = {}
        for item in range(len(self.lengths)):
            of_question.setdefault(self.place(item).asked, []).append(item)
        for asked, items in of_question.items():
            chosen = [self.passages.windows[i] for i in items]
            passages = [[c.lower() for c in contexts[w.index][w.start : w.stop]] for w in chosen]
            for item, value in zip(
                items, evidence_features([c.lower() for c in questions[asked]], passages), strict=True
            ):
                found[item] = value
        return found


class EncoderWindows:
    """Tokens for a transformer: [CLS] question [SEP] window [SEP].

    Args:
        tokenizer: with a start and an end token.
        asked: questions; a window that holds the answer has its first and last token as target, any other (0, 0).
        config: "max_len", "max_question", "overlap".
    """

    def __init__(self, tokenizer: PairEncoder, asked: Sequence[Asked], config: dict[str, Any]) -> None:
        start, end = (tokenizer.token_to_id(str(t)) for t in (tokenizer.token_start, tokenizer.token_end))
        most = min(config["max_question"], (config["max_len"] - 3) // 2)
        self.ids: list[list[int]] = []
        self.begins: list[int] = []  # first token of the window in its row
        self.spans: list[list[tuple[int, int]]] = []  # of the window's tokens in the context
        self.targets: list[tuple[int, int]] = []
        self.of: list[Place] = []
        self.cut: list[int] = []  # tokens read of a question that is longer, else 0
        pieces: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        for number, one in enumerate(asked):
            question = tokenizer.pieces(one.question)[0]
            self.cut.append(most if len(question) > most else 0)
            head = [start, *question[:most], end]
            room = config["max_len"] - len(head) - 1
            for c, text in enumerate(one.contexts):
                if text not in pieces:
                    pieces[text] = tokenizer.pieces(text)
                ids, spans = pieces[text]
                for window in windows([len(ids)], room, min(config["overlap"] // 2, (room - 1) // 4)):
                    inside = spans[window.start : window.stop]
                    self.ids.append([*head, *ids[window.start : window.stop], end])
                    self.begins.append(len(head))
                    self.spans.append(inside)
                    self.targets.append(_target(one.answer if c == 0 else None, inside, len(head)))
                    self.of.append(Place(number, c))
        self.lengths = [len(row) for row in self.ids]

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its windows."""
        return float(len(indices))

    def place(self, item: int) -> Place:
        """The context that a window is of."""
        return self.of[item]

    def characters(self, item: int, first: int, last: int) -> tuple[int, int]:
        """Where tokens first to last of a row stand in the context, end exclusive."""
        begin = self.begins[item]
        return self.spans[item][first - begin][0], self.spans[item][last - begin][1]

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids, segments, mask, candidates (B, T), target (B, 2)."""
        lengths = torch.tensor([self.lengths[i] for i in indices])[:, None]
        begins = torch.tensor([self.begins[i] for i in indices])[:, None]
        step = torch.arange(int(lengths.max()))
        mask = step < lengths
        return {
            "ids": pad_sequences([self.ids[i] for i in indices]),
            "segments": ((step >= begins) & mask).long(),
            "mask": mask,
            "candidates": (step >= begins) & (step < lengths - 1),
            "target": torch.tensor([self.targets[i] for i in indices]),
        }


def _target(answer: Answer | None, spans: Sequence[tuple[int, int]], begin: int) -> tuple[int, int]:
    """First and last token of the answer in the row, (0, 0) where the window does not hold all of it."""
    if answer is None or answer.start is None or answer.end is None or not spans:
        return 0, 0
    borders = np.array(spans)  # (T, 2)
    if answer.start < borders[:, 0].min() or answer.end > borders[:, 1].max():
        return 0, 0
    touched = np.flatnonzero((borders[:, 1] > answer.start) & (borders[:, 0] < answer.end))
    return (begin + int(touched[0]), begin + int(touched[-1])) if len(touched) else (0, 0)
