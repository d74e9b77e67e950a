"""What the recipes on word segmentation share: pieces of the People's Daily, batches of them, a tagger's score.

A recipe keeps its model and its training loop; here stand reading, padding and counting.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from danlu.data.batching import bucketed_batches
from danlu.data.embedded import load_peoples_daily
from danlu.data.tagged import Tagged
from danlu.math.metrics import f1_from_counts, span_counts
from danlu.math.tag_scheme import illegal_steps

LABELS = ("B", "M", "E", "S")
UNKNOWN = 1  # 0 is padding


@dataclass(frozen=True)
class Piece:
    """At most `max_len` characters of a paragraph, cut between words."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Padded characters and tags, (B, T) each; mask is True where there is a character."""

    ids: Tensor
    tags: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sample:
    """Training and test pieces of one seed and the ids of the characters that training knows."""

    train: list[Piece]
    test: list[Piece]
    ids: dict[str, int]


@cache
def pieces(part: str, max_len: int) -> list[Piece]:
    """All pieces of the corpus' train or test part, in its order."""
    return [piece for example in getattr(_corpus(), part) for piece in cut(example, max_len)]


@cache
def _corpus():  # type: ignore[no-untyped-def]
    return load_peoples_daily("segmentation")


def cut(example: Tagged, max_len: int) -> Iterator[Piece]:
    """The example in pieces of whole words; a word longer than `max_len` is cut where it has to be."""
    start, size = 0, len(example.tokens)
    while start < size:
        longest = stop = min(start + max_len, size)
        while stop > start and example.tags[stop - 1] not in ("E", "S"):
            stop -= 1
        stop = longest if stop == start else stop
        yield Piece(example.tokens[start:stop], example.tags[start:stop])
        start = stop


def draw(seed: int, train: int, test: int, max_len: int) -> Sample:
    """Random pieces of both parts, others for each seed; never a training piece in the test."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for part, count in (("train", train), ("test", test)):
        found = pieces(part, max_len)
        chosen.append([found[i] for i in torch.randperm(len(found), generator=generator)[:count].tolist()])
    characters = sorted({c for piece in chosen[0] for c in piece.tokens})
    return Sample(*chosen, {c: i + UNKNOWN + 1 for i, c in enumerate(characters)})


def collate(some: Sequence[Piece], ids: dict[str, int]) -> Batch:
    """Pieces as padded tensors."""
    longest = max(len(piece.tokens) for piece in some)
    characters = torch.zeros(len(some), longest, dtype=torch.int64)
    tags = torch.zeros(len(some), longest, dtype=torch.int64)
    lengths = torch.tensor([len(piece.tokens) for piece in some])
    for row, piece in enumerate(some):
        characters[row, : lengths[row]] = torch.tensor([ids.get(c, UNKNOWN) for c in piece.tokens])
        tags[row, : lengths[row]] = torch.tensor([LABELS.index(tag) for tag in piece.tags])
    return Batch(characters, tags, torch.arange(longest) < lengths[:, None])


def batches(some: Sequence[Piece], ids: dict[str, int], batch_size: int, seed: int, epoch: int = 0) -> Iterator[Batch]:
    """One pass in random order, pieces of like length together."""
    for rows in bucketed_batches([len(piece.tokens) for piece in some], batch_size, seed, epoch):
        yield collate([some[i] for i in rows], ids)


@torch.no_grad()
def score(model: nn.Module, some: Sequence[Piece], ids: dict[str, int], batch_size: int = 64) -> tuple[float, float]:
    """Word F1 and the share of illegal steps in what `model.decode(ids, mask)` finds, in evaluation mode."""
    was_training = model.training
    model.eval()
    predicted: list[list[str]] = []
    for start in range(0, len(some), batch_size):
        batch = collate(some[start : start + batch_size], ids)
        found = model.decode(batch.ids, batch.mask)
        predicted += [[LABELS[tag] for tag in row if tag >= 0] for row in found.tolist()]
    model.train(was_training)
    counts = span_counts(predicted, [piece.tags for piece in some], "BMES")
    illegal = sum(len(illegal_steps(tags, "BMES")) for tags in predicted)
    steps = sum(len(tags) + 1 for tags in predicted)  # into each character and out of the last
    return f1_from_counts(*(sum(column) for column in zip(*counts, strict=True))), illegal / steps
