r"""Two texts against each other: both in one transformer, or a light network that reads each by itself.

    cross-encoder    s = head of [CLS] a [SEP] b [SEP], segments 0 and 1                      (1)
    siamese          s = W [u; v; |u - v|; u * v] + c,   u = f(a), v = f(b)                   (2)

A pair of more than `max_len` tokens loses the ends of its longer text (1); in (2) each text may have `max_len`. The
targets of a score are brought to mean 0 and variance 1 of the training part.

Source: (1) Devlin et al., 2019, arXiv:1810.04805; (2) Conneau et al., 2017, arXiv:1705.02364.
Shapes: B batch, T tokens, D features, K outputs: the classes, or one score.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.sequences import pad_sequences
from danlu.nn import AttentionPool1d
from danlu.tasks.char_model import char_encoder, char_vector, split_text
from danlu.tasks.encoder import Encoded, Encoder
from danlu.tasks.objective import Objective, classification_loss
from danlu.tasks.text_classifier import TextClassifier
from danlu.text import CharVocab

__all__ = ["CharMatcher", "CharPairs", "EncoderMatcher"]


def match_loss(model: Any, batch: dict[str, Tensor], objective: Objective | None) -> Tensor:
    """Sum over pairs of the cross-entropy, or of the squared error of the scores."""
    if model.labels:
        return classification_loss(model, batch, objective)
    logits = model.logits(batch)
    target = (batch["label"].float() - model.config["mean"]) / model.config["std"]  # (B,)
    return (logits[:, 0] - target).square().sum()


class CharPairs:
    """Pairs of texts as numbered characters.

    Args:
        vocab: numbers tokens and their pairs.
        first: tokens of the first texts.
        second: tokens of the second ones.
        max_len: tokens of a text; what lies beyond is cut.
        labels: a number for every pair, or None.
    """

    def __init__(
        self,
        vocab: CharVocab,
        first: Sequence[Sequence[str]],
        second: Sequence[Sequence[str]],
        max_len: int,
        labels: Sequence[float] | None = None,
    ) -> None:
        both = [*zip(first, second, strict=True)]
        self.cut = [max(len(a), len(b)) > max_len for a, b in both]
        self.sides = [vocab.encode([row[:max_len] for row in rows]) for rows in (first, second)]
        self.lengths = [min(max_len, len(a)) + min(max_len, len(b)) for a, b in both]
        self.labels = None if labels is None else torch.tensor(labels)

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its pairs."""
        return float(len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """tokens, bigrams and mask (B, T) of both sides, names + "_a" and "_b", and label (B,)."""
        batch = {}
        for side, (ids, pairs) in zip(("_a", "_b"), self.sides, strict=True):
            lengths = torch.tensor([len(ids[i]) for i in indices])
            longest = max(1, int(lengths.max()))
            batch[f"tokens{side}"] = pad_sequences([ids[i] for i in indices], longest)
            batch[f"bigrams{side}"] = pad_sequences([pairs[i] for i in indices], longest)
            batch[f"mask{side}"] = torch.arange(longest) < lengths[:, None]
        if self.labels is not None:
            batch["label"] = self.labels[list(indices)]
        return batch


class CharMatcher(nn.Module):
    """The siamese network, eq. (2).

    Args:
        vocab: what the tokens and bigrams are numbered by.
        labels: classes in the order of the outputs; none for a score.
        config: of `char_config`, with "mean" and "std" of the scores.
    """

    def __init__(self, vocab: CharVocab, labels: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self.vocab, self.labels, self.config = vocab, list(labels), config
        self.encoder = char_encoder(vocab, config)
        self.pool = AttentionPool1d(config["dim"])
        self.dropout = nn.Dropout(config["dropout"])
        self.output = nn.Linear(8 * config["dim"], max(1, len(labels)))

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense token table."""
        return [self.encoder.char_embedding.weight]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.encoder.sparse_parameters())

    def pairs(self, first: Sequence[str], second: Sequence[str], labels: Sequence[float] | None = None) -> CharPairs:
        """The pairs as the model reads them."""
        sides = [[split_text(text) for text in texts] for texts in (first, second)]
        return CharPairs(self.vocab, sides[0], sides[1], self.config["max_len"], labels)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, K), float32."""
        u = char_vector(self.encoder, self.pool, batch, "_a")  # (B, 2 D)
        v = char_vector(self.encoder, self.pool, batch, "_b")  # (B, 2 D)
        both = torch.cat([u, v, (u - v).abs(), u * v], -1)  # (B, 8 D)
        return self.output(self.dropout(both)).float()  # eq. (2)

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over pairs of the losses."""
        return match_loss(self, batch, objective)


class EncoderMatcher(TextClassifier):
    """The cross-encoder, eq. (1).

    Args:
        encoder: the transformer with its tokenizer.
        labels: classes in the order of the outputs; none for a score.
        config: "pooling", "dropout", "max_len", "mean" and "std" of the scores.
    """

    def __init__(self, encoder: Encoder, labels: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__(encoder, max(1, len(labels)), config)
        self.labels = list(labels)

    def pairs(
        self, first: Sequence[str], second: Sequence[str], labels: Sequence[float] | None = None
    ) -> "EncodedPairs":
        """The pairs as the model reads them."""
        room = self.encoder.room(self.config["max_len"])
        return EncodedPairs(self.encoder, first, second, room, labels)

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over pairs of the losses."""
        return match_loss(self, batch, objective)


class EncodedPairs(Encoded):
    """Pairs in one row of tokens each, with segments; `cut` says which were truncated."""

    def __init__(
        self,
        encoder: Encoder,
        first: Sequence[str],
        second: Sequence[str],
        max_len: int,
        labels: Sequence[float] | None = None,
    ) -> None:
        tokenizer = encoder.tokenizer
        rows = tokenizer.encode_batch(first, second)
        self.cut = [len(row.ids) > max_len for row in rows]
        for i in (i for i, cut in enumerate(self.cut) if cut):
            (rows[i],) = tokenizer.encode_batch([first[i]], [second[i]], maxlen=max_len)
        super().__init__(rows, {} if labels is None else {"label": labels})
