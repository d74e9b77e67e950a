r"""Taggers: an encoder, and above it a sequence head over tags or a GlobalPointer over spans.

    sequence head    L = -log p(tags | W h + b),  CRF, MEMM or softmax                        (1)
    global_pointer   L = sum over types of the multi-label cross-entropy of all spans          (2)

The light network has one hidden vector a token; a transformer one a piece, of which those of `piece_steps` count.

Source: kexue.fm/archives/5409, 5542, 7196, 7213 (1); 8373, 8877 and 8888 (2).
Shapes: B batch, T pieces, S steps, D features, K tags, H types, P spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from danlu.data.sequences import pad_sequences
from danlu.losses import sparse_multilabel_cross_entropy
from danlu.math.tag_scheme import allowed_transitions, split_tag
from danlu.nn.crf import CRF
from danlu.nn.global_pointer import EfficientGlobalPointer
from danlu.nn.memm import MEMM
from danlu.nn.softmax_head import SoftmaxHead
from danlu.tasks.char_model import char_encoder
from danlu.tasks.encoder import Encoder
from danlu.tasks.objective import Objective
from danlu.tasks.piece_steps import Aligned, StepWindows, align, step_tags
from danlu.tasks.windowed import Windowed
from danlu.text import CharVocab

__all__ = ["CharTagger", "EncoderTagger", "Sentence", "SpanTargets", "Tagger"]
POINTER_SIZE = 64  # features of the queries and keys of a pointer
Span = tuple[int, int, str]


@dataclass(frozen=True)
class Sentence:
    """Tokens and where they stand in their text."""

    tokens: Sequence[str]
    text: str
    places: Sequence[tuple[int, int]]


class Tagger(nn.Module):
    """What the taggers share: the head, the loss.

    Args:
        labels: tags in the order of the outputs.
        scheme: of the tags.
        config: "head", "constraints", "unit", "max_len", "context", and sizes (`Task.build`).
    """

    encoder: nn.Module

    def __init__(self, labels: Sequence[str], scheme: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.labels, self.scheme, self.config = list(labels), scheme, config
        self.types = sorted({split_tag(tag)[1] for tag in labels if tag != "O"})
        self.points = config["head"] == "global_pointer"

    def add_head(self, dim: int) -> None:
        """The layers above an encoder of this width."""
        kind, size = self.config["head"], len(self.labels)
        if self.points:
            self.head: nn.Module = EfficientGlobalPointer(dim, len(self.types), POINTER_SIZE)
            return
        self.output = nn.Linear(dim, size)
        allowed = allowed_transitions(self.labels, self.scheme) if self.config["constraints"] else None
        self.head = (
            CRF(size, constraints=allowed)
            if kind == "crf"
            else SoftmaxHead(size, constraints=allowed)
            if kind == "softmax"
            else MEMM(size, bidirectional=kind == "bimemm", constraints=allowed)
        )

    def numbers(self, tags: Sequence[Sequence[str]] | None) -> list[list[int]] | None:
        """Tags as rows of the output."""
        number = {label: i for i, label in enumerate(self.labels)}
        return None if tags is None else [[number[tag] for tag in row] for row in tags]

    def states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden vectors of the steps (B, S, D) and which of them are there (B, S)."""
        raise NotImplementedError

    def emissions(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, S, K) of every label at every step, float32."""
        return self.output(self.states(batch)[0]).float()

    def span_scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, H, S, S) of every type, first and last step, float32."""
        return self.head(*self.states(batch)).float()

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over sequences of the negative log-likelihood, eq. (1), or of the spans' loss, eq. (2)."""
        if self.points:
            scores = self.span_scores(batch).flatten(2)  # (B, H, S S)
            return sparse_multilabel_cross_entropy(scores, batch["spans"], reduction="sum")  # eq. (2)
        hidden, mask = self.states(batch)
        return self.head(self.output(hidden).float(), batch["tags"], mask, reduction="sum")  # eq. (1)


class CharTagger(Tagger):
    """The light network.

    Args:
        vocab: what the tokens and bigrams are numbered by.
        labels: tags in the order of the outputs.
        scheme: of the tags.
        config: also of `char_config`.
    """

    def __init__(self, vocab: CharVocab, labels: Sequence[str], scheme: str, config: dict[str, Any]) -> None:
        super().__init__(labels, scheme, config)
        self.vocab = vocab
        self.encoder = char_encoder(vocab, config)
        self.add_head(config["dim"])

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense token table."""
        return [self.encoder.char_embedding.weight]  # type: ignore[list-item, union-attr]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.encoder.sparse_parameters())  # type: ignore[operator]

    def read(
        self, sentences: Sequence[Sentence], context: int = 0, tags: Sequence[Sequence[str]] | None = None
    ) -> Windowed:
        """Windows over the sentences, with every token's tag where they are learned."""
        tokens = [s.tokens for s in sentences]
        return Windowed(self.vocab, tokens, self.config["max_len"], context, tags=self.numbers(tags))

    def unknown(self, data: Windowed) -> int:
        """Tokens that the vocabulary lacks."""
        return int(((data.tokens > 0) & (data.tokens < len(self.vocab) - len(self.vocab.tokens))).sum())

    def states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden vectors of the tokens (B, T, D), and the mask."""
        pairs = batch["bigrams"] if self.vocab.num_bigrams else None
        return self.encoder(batch["tokens"], pairs, batch["mask"]), batch["mask"]


class EncoderTagger(Tagger):
    """A transformer, its steps (`danlu.tasks.piece_steps`).

    Args:
        encoder: the transformer with its tokenizer.
        labels: tags in the order of the outputs.
        scheme: of the tags.
        config: also "dropout".
    """

    def __init__(self, encoder: Encoder, labels: Sequence[str], scheme: str, config: dict[str, Any]) -> None:
        super().__init__(labels, scheme, config)
        self.encoder = encoder
        self.dropout = nn.Dropout(config["dropout"])
        self.add_head(encoder.dim)

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return self.encoder.attack_weights()  # type: ignore[operator]

    def aligned(self, sentence: Sentence) -> Aligned:
        """The pieces of a sentence and its steps."""
        tokenizer: Any = self.encoder.tokenizer
        ids, offsets = tokenizer.pieces(sentence.text)
        unknown = None if "O" in self.labels else tokenizer.token_to_id("[UNK]")
        return align(sentence.places, list(zip(ids, offsets, strict=True)), unknown)

    def read(
        self, sentences: Sequence[Sentence], context: int = 0, tags: Sequence[Sequence[str]] | None = None
    ) -> StepWindows:
        """Windows over the sentences, with every token's tag where they are learned."""
        aligned = [self.aligned(s) for s in sentences]
        if tags is not None:
            tags = [step_tags(a, row, self.scheme) for a, row in zip(aligned, tags, strict=True)]
        return StepWindows(self.encoder, aligned, self.config["max_len"], context, self.numbers(tags))

    def unknown(self, data: StepWindows) -> int:
        """Pieces that the vocabulary lacks."""
        return int((data.ids == self.encoder.tokenizer.token_to_id("[UNK]")).sum())

    def states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden vectors of the steps' first pieces (B, S, D), and which are there."""
        hidden = self.encoder(batch)  # (B, T, D)
        return self.dropout(hidden.take_along_dim(batch["first"][..., None], 1)), batch["steps"]


class SpanTargets:
    """Windows with the spans that lie in them, for a GlobalPointer.

    Args:
        data: the windows.
        spans: of every example, in steps.
        types: in the order of the outputs.
    """

    def __init__(self, data: Windowed | StepWindows, spans: Sequence[Sequence[Span]], types: Sequence[str]) -> None:
        self.data, self.spans, self.lengths = data, spans, data.lengths
        self.number = {kind: i for i, kind in enumerate(types)}

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its windows."""
        return float(len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The windows' batch and "spans" (B, H, P): first step * S + last step, padded with -1."""
        batch = self.data.collate(indices)
        steps = batch["steps" if "steps" in batch else "mask"].shape[1]
        rows: list[list[list[int]]] = []
        for i in indices:
            begin, stop = self.data.bounds(i)
            places: list[list[int]] = [[] for _ in self.number]
            for a, b, kind in self.spans[self.data.windows[i].index]:
                if begin <= a and b <= stop:
                    places[self.number[kind]].append((a - begin) * steps + b - 1 - begin)
            rows.append(places)
        most = max(1, max(len(places) for row in rows for places in row))
        batch["spans"] = pad_sequences(rows, [len(self.number), most], value=-1, axes=2)
        return batch
