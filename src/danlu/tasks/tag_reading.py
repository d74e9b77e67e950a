"""From sentences to tags or spans: windows through a tagger, their scores joined, the best answer over whole sentences.

A sequence head decodes the joined scores of a sentence. A GlobalPointer's spans are found in each window and belong to
the one that answers for their first step: with a context of c pieces every span of up to c + 1 pieces stands whole in
some window that answers for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from danlu.math.tag_scheme import spans, tags_from_spans
from danlu.nn.global_pointer import decode_spans
from danlu.tasks.piece_steps import StepWindows, step_tags, token_tags
from danlu.tasks.tag_model import Sentence, Span, Tagger
from danlu.tasks.windowed import Windowed

__all__ = ["Reading", "read_sentences", "sequence_losses", "without_overlap"]
Windows = Windowed | StepWindows


@dataclass(frozen=True)
class Reading:
    """What a tagger finds in one sentence: its spans, its tags, how sure it is of each tag (if asked)."""

    spans: list[Span]
    tags: list[str]
    sure: np.ndarray


def read_sentences(
    model: Tagger, sentences: Sequence[Sentence], marginals: bool = False
) -> tuple[list[Reading], Windows, list[Tensor]]:
    """Readings of all sentences.

    Args:
        model: in evaluation mode.
        sentences: to be read.
        marginals: also the probability of each chosen tag; a GlobalPointer has none.

    Returns:
        Readings, the windows, and the joined scores (steps, K) of a sequence head.
    """
    data = model.read(sentences, model.config["context"])  # type: ignore[operator]
    sizes = [len(s.tokens) for s in sentences]
    if model.points:
        return _pointed(model, data, sizes), data, []
    scores = score_arrays(model, data)
    chosen, sure = decode(model, scores, marginals)
    readings = []
    for i, (tags, values) in enumerate(zip(chosen, sure, strict=True)):
        if isinstance(data, StepWindows):
            tags, values = token_tags(data.aligned[i], tags, model.scheme, sizes[i]), _spread(data, i, values, sizes[i])
        readings.append(Reading(spans(tags, model.scheme), tags, values))
    return readings, data, scores


@torch.no_grad()
def score_arrays(model: Tagger, data: Windows) -> list[Tensor]:
    """Emissions (steps, K) of every example, windows joined."""
    device = next(model.parameters()).device
    out = [torch.zeros(size, len(model.labels)) for size in data.steps]
    order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
    for chunk in chunks(order, data.lengths, 16_384):
        batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
        scores = model.emissions(batch).cpu()
        for row, i in enumerate(chunk):
            (begin, _), (start, stop) = data.bounds(i), data.kept(i)
            out[data.windows[i].index][start:stop] = scores[row, start - begin : stop - begin]
    return out


@torch.no_grad()
def decode(
    model: Tagger, scores: Sequence[Tensor], marginals: bool = False
) -> tuple[list[list[str]], list[np.ndarray]]:
    """Best tags of every example, and the probability of each chosen tag if asked."""
    tags: list[list[str]] = [[] for _ in scores]
    sure: list[np.ndarray] = [np.zeros(0, np.float32) for _ in scores]
    lengths = [len(s) for s in scores]
    order = sorted((i for i in range(len(scores)) if lengths[i]), key=lambda i: lengths[i])
    head = model.head.cpu() if next(model.parameters()).device.type == "mps" else model.head
    device = next(model.output.parameters()).device
    for chunk in chunks(order, lengths, 65_536):
        padded = nn.utils.rnn.pad_sequence([scores[i] for i in chunk], batch_first=True).to(device)  # (B, T, K)
        mask = (
            torch.arange(padded.shape[1], device=device)
            < torch.tensor([lengths[i] for i in chunk], device=device)[:, None]
        )
        best = head.decode(padded, mask)  # type: ignore[operator]  # (B, T), -1 at masked steps
        chosen = None
        if marginals:
            chosen = head.marginals(padded, mask).gather(-1, best.clamp_min(0)[..., None])[..., 0]  # type: ignore[operator]
        for row, i in enumerate(chunk):
            tags[i] = [model.labels[k] for k in best[row, : lengths[i]].tolist()]
            if chosen is not None:
                sure[i] = chosen[row, : lengths[i]].float().cpu().numpy()
    return tags, sure


@torch.no_grad()
def sequence_losses(
    model: Tagger, data: Windows, scores: Sequence[Tensor], gold: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Mean negative log-likelihood a token, and that of every example."""
    number = {label: i for i, label in enumerate(model.labels)}
    losses = []
    device = next(model.output.parameters()).device
    legal = model.config["constraints"]
    for i, (s, row) in enumerate(zip(scores, gold, strict=True)):
        if not len(s):
            losses.append(0.0)
            continue
        own = step_tags(data.aligned[i], row, model.scheme) if isinstance(data, StepWindows) else row
        tags = torch.tensor([[number[t] for t in own]], device=device)
        try:
            losses.append(-float(model.head.log_prob(s[None].to(device), tags)[0]))  # type: ignore[operator]
        except ValueError:  # gold tags that the constraints exclude have no probability
            if not legal:
                raise
            losses.append(float("inf"))
    finite = [v for v in losses if np.isfinite(v)]
    tokens = sum(len(row) for row, v in zip(gold, losses, strict=True) if np.isfinite(v))
    return sum(finite) / max(1, tokens), losses


def without_overlap(found: Iterable[tuple[int, int, str, float]]) -> list[Span]:
    """Spans of which no two share a token, the higher score first.

    >>> without_overlap([(0, 3, "a", 1.0), (2, 4, "b", 2.0), (0, 1, "c", 0.5)])
    [(0, 1, 'c'), (2, 4, 'b')]
    """
    kept: list[Span] = []
    for a, b, kind, _ in sorted(found, key=lambda span: -span[3]):
        if all(b <= start or end <= a for start, end, _ in kept):
            kept.append((a, b, kind))
    return sorted(kept)


@torch.no_grad()
def _pointed(model: Tagger, data: Windows, sizes: Sequence[int]) -> list[Reading]:
    """Spans of every example, nested ones too; its tags are those of the surest that do not overlap."""
    device = next(model.parameters()).device
    found: list[list[tuple[int, int, str, float]]] = [[] for _ in sizes]
    order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
    for chunk in chunks(order, data.lengths, 4_096):
        batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
        for i, some in zip(chunk, decode_spans(model.span_scores(batch)), strict=True):
            index, (begin, _), (start, stop) = data.windows[i].index, data.bounds(i), data.kept(i)
            for a, b, kind, score in some:
                if start <= a + begin < stop:
                    span = (a + begin, b + begin, model.types[kind])
                    if isinstance(data, StepWindows):
                        (span,) = data.aligned[index].to_tokens([span])
                    found[index].append((*span, score))
    readings = []
    for spans_found, size in zip(found, sizes, strict=True):
        tags = tags_from_spans(without_overlap(spans_found), size, model.scheme)
        readings.append(Reading(sorted(span[:3] for span in spans_found), tags, np.zeros(0, np.float32)))
    return readings


def _spread(data: StepWindows, index: int, values: np.ndarray, tokens: int) -> np.ndarray:
    """Numbers of steps as numbers of tokens; 1 where a token has no step and its tag no doubt."""
    if not len(values):
        return values
    out = np.ones(tokens, np.float32)
    a = data.aligned[index]
    for value, start, stop in zip(values, a.starts, a.stops, strict=True):
        out[start:stop] = value
    return out


def chunks(order: Sequence[int], lengths: Sequence[int], cells: int) -> Iterable[list[int]]:
    """Neighbours of a sorted order, at most `cells` padded tokens together."""
    chunk: list[int] = []
    for i in order:
        if chunk and lengths[i] * (len(chunk) + 1) > cells:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
