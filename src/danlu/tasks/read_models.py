"""The two readers under one roof: given windows, each gives spans with a score in [0, 1] that windows can share."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.losses.focal import focal_loss
from danlu.losses.multilabel import sparse_multilabel_cross_entropy
from danlu.nn.global_pointer import EfficientGlobalPointer
from danlu.nn.span_pointer import SpanPointer, best_spans, span_log_probs, span_nll
from danlu.tasks.encoder import Encoder
from danlu.tasks.objective import Objective
from danlu.text import CharVocab
from danlu.text.dgcnn_reader import DGCNNReader, ReaderOutput, reader_log_probs

__all__ = ["DGCNNReading", "EncoderReading", "WindowSpans"]
KEPT = 20  # spans of a window that take part in a vote
SCALE = 100.0  # of the focal loss, which is small: most characters are settled

Spans = list[tuple[int, int, float]]


@dataclass(frozen=True)
class WindowSpans:
    """Spans (first token, last token, score) of a window: those it stands by, and the best one it has."""

    sure: Spans
    best: Spans


class DGCNNReading(nn.Module):
    """The gated convolutions of `danlu.text.dgcnn_reader` with the focal loss.

    Args:
        vocab: numbers characters and their pairs.
        config: sizes, dropouts, "features", "presence", "alpha", "gamma", "threshold", "max_answer", and what
            `CharWindows` reads.
    """

    def __init__(self, vocab: CharVocab, config: dict[str, Any]) -> None:
        super().__init__()
        self.vocab, self.config = vocab, config
        self.reader = DGCNNReader(
            len(vocab), vocab.num_bigrams, dim=config["dim"], bigram_dim=config["bigram_dim"],
            num_features=4 if config["features"] else 0, dilations=config["dilations"], dropout=config["dropout"],
            gate_dropout=config["gate_dropout"], bigram_dropout=config["bigram_dropout"],
            token_dropout=config["token_dropout"], presence=config["presence"],
        )  # fmt: skip

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense character table."""
        return [self.reader.question.char_embedding.weight]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.reader.sparse_parameters())

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over characters of the focal losses of start and end."""
        out, mask = self._output(batch), batch["mask"]
        options = {"alpha": self.config["alpha"], "gamma": self.config["gamma"], "reduction": "sum"}
        start = focal_loss(*reader_log_probs(out.start, out.presence), batch["start"], mask, **options)
        end = focal_loss(*reader_log_probs(out.end, out.presence), batch["end"], mask, **options)
        return SCALE * (start + end)

    @torch.no_grad()
    def spans(self, batch: dict[str, Tensor]) -> list[WindowSpans]:
        """Spans whose start and end both lie above the threshold, and the best span."""
        out, mask, longest = self._output(batch), batch["mask"], self.config["max_answer"]
        start, _ = reader_log_probs(out.start, out.presence)
        end, _ = reader_log_probs(out.end, out.presence)
        low = torch.tensor(self.config["threshold"], device=start.device).log()
        sure = best_spans(
            start.masked_fill(start <= low, -torch.inf), end.masked_fill(end <= low, -torch.inf), mask, longest, KEPT
        )
        best = best_spans(start, end, mask, longest)
        return [WindowSpans(_exp(s), _exp(b)) for s, b in zip(sure, best, strict=True)]

    def _output(self, batch: dict[str, Tensor]) -> ReaderOutput:
        pairs = bool(self.vocab.num_bigrams)
        return self.reader(
            batch["question"],
            batch["tokens"],
            batch["question_bigrams"] if pairs else None,
            batch["bigrams"] if pairs else None,
            batch["question_mask"],
            batch["mask"],
            batch.get("features"),
        )


class EncoderReading(nn.Module):
    """A transformer over question and window, and a head for spans.

    Args:
        encoder: with its tokenizer.
        config: "span_head" ("start_end" or "global_pointer"), "max_answer", and what `EncoderWindows` reads.
    """

    def __init__(self, encoder: Encoder, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.head: nn.Module = (
            SpanPointer(encoder.dim) if config["span_head"] == "start_end" else EfficientGlobalPointer(encoder.dim, 1)
        )

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return self.encoder.attack_weights()

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over windows of the loss of start and end, or of all spans."""
        hidden, target, candidates = self.encoder(batch), batch["target"], batch["candidates"]
        if isinstance(self.head, SpanPointer):
            return span_nll(self.head(hidden), target, candidates, "sum")
        logits = self.head(hidden, candidates)[:, 0]  # (B, T, T)
        flat = torch.where(target[:, 0] > 0, target[:, 0] * logits.shape[-1] + target[:, 1], -1)  # (B,)
        return sparse_multilabel_cross_entropy(logits.flatten(1), flat[:, None], reduction="sum")

    @torch.no_grad()
    def spans(self, batch: dict[str, Tensor]) -> list[WindowSpans]:
        """Spans likelier than "not in this window", and the best span."""
        hidden, candidates, longest = self.encoder(batch), batch["candidates"], self.config["max_answer"]
        if isinstance(self.head, SpanPointer):
            log_probs = span_log_probs(self.head(hidden), candidates)  # (B, T, 2)
            none = log_probs[:, 0].sum(-1).tolist()
            found = best_spans(*log_probs.unbind(-1), candidates, longest, KEPT)
            return [
                WindowSpans([(i, j, likelihood(s)) for i, j, s in row if s > null], _exp(row[:1]))
                for row, null in zip(found, none, strict=True)
            ]
        return [_of_matrix(row, longest) for row in self.head(hidden, candidates)[:, 0].float()]


def _of_matrix(logits: Tensor, longest: int) -> WindowSpans:
    """The spans of a matrix of scores (T, T) with -inf at what is no span; 0 is where a span begins to be likely."""
    band = logits.triu().masked_fill(~torch.ones_like(logits, dtype=torch.bool).triu().tril(longest - 1), -torch.inf)
    values, order = band.flatten().topk(min(KEPT, band.numel()))
    tokens = logits.shape[-1]
    rows = [
        (at // tokens, at % tokens, value, chance)
        for at, value, chance in zip(order.tolist(), values.tolist(), values.sigmoid().tolist(), strict=True)
        if value > -torch.inf
    ]
    spans = [(i, j, chance) for i, j, _, chance in rows]
    return WindowSpans([span for span, row in zip(spans, rows, strict=True) if row[2] > 0], spans[:1])


def likelihood(value: float) -> float:
    """e to a log-probability, at most 1 whatever the rounding."""
    return min(1.0, math.exp(value))


def _exp(spans: Spans) -> Spans:
    return [(i, j, likelihood(score)) for i, j, score in spans]
