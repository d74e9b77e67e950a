r"""A light reader: the question as one vector beside every character of a passage, gated convolutions, two sigmoids.

    q   = AttentionPool(DGCNN_{1,2,1}(emb(question)))                                                            (1)
    x_t = W [emb(p_t); q; f_t]                                                                                   (2)
    h_t = [DGCNN_{1,2,4,8,16,1}(x)_t; q]                                                                         (3)
    g   = w_g . AttentionPool(h) + b_g               does this passage hold the answer?                          (4)
    P(start = t) = sigmoid(g) sigmoid(w_s . h_t + b_s),   P(end = t) alike                                       (5)
    1 - P = sigmoid(-g) + sigmoid(g) sigmoid(-z)         for z the inner product, without cancellation           (6)

emb is one character table (with neighbouring pairs, `CharEncoder.embed`) for both, f_t are features of the position
(`danlu.math.evidence_features`) or nothing. A passage without answer has zeros everywhere, which the one number g can
say; several places of the same answer all have ones, which a softmax over positions could not. Train on (5) with
`danlu.losses.focal_loss`.

The open program mixes in a fixed word vector for the word a character stands in; here pairs of characters bring words
in, without a segmenter. `token_dropout` makes tokens unknown in training, the post's augmentation.

Source: kexue.fm/archives/5409 (2018) and 6906 (2019), the second of which this follows; features from the first.
Shapes: B batch, S characters of the question, T of the passage, D features, F features of a position.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide_dtype
from danlu.nn.attention_pool import AttentionPool1d
from danlu.nn.dgcnn import DGCNN
from danlu.text.char_encoder import CharEncoder

__all__ = ["DGCNNReader", "ReaderOutput", "reader_log_probs"]

UNK = 1


class ReaderOutput(NamedTuple):
    """Logits of start and end (B, T), eq. (5), and of the passage (B,), eq. (4); None where it is switched off."""

    start: Tensor
    end: Tensor
    presence: Tensor | None


class DGCNNReader(nn.Module):
    r"""Question and passage to logits of start, end and presence, eq. (1) to (5).

    Args:
        num_tokens: rows of the character table.
        num_bigrams: rows of the pair table; 0 for none.
        dim: features D of every layer.
        char_dim: features of a character's row.
        bigram_dim: features of a pair's row.
        num_features: F, features of a position; 0 for none.
        question_dilations: layers over the question.
        dilations: layers over the passage.
        dropout: share of the features of the embedding that are dropped in training.
        gate_dropout: share of the gates that are set to 1/2 in training.
        bigram_dropout: share of the pairs that become unknown in training.
        token_dropout: share of the tokens that become unknown in training, in [0, 1).
        presence: judge the passage as a whole, eq. (4); False leaves it out of (5).
        sparse: the gradient of the pair table is a sparse tensor.

    Raises:
        ValueError: a setting is out of its range.

    >>> reader = DGCNNReader(num_tokens=9, dim=4)
    >>> out = reader(torch.tensor([[7, 8]]), torch.tensor([[8, 7, 7]]))
    >>> out.start.shape, out.presence.shape
    (torch.Size([1, 3]), torch.Size([1]))
    """

    def __init__(
        self,
        num_tokens: int,
        num_bigrams: int = 0,
        dim: int = 128,
        char_dim: int = 128,
        bigram_dim: int = 64,
        num_features: int = 0,
        question_dilations: Sequence[int] = (1, 2, 1),
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 1),
        dropout: float = 0.1,
        gate_dropout: float = 0.1,
        bigram_dropout: float = 0.0,
        token_dropout: float = 0.0,
        presence: bool = True,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 0:
            raise ValueError(f"num_features must be at least 0, got {num_features}; 0 is none")
        if not 0 <= token_dropout < 1:
            raise ValueError(f"token_dropout must lie in [0, 1), got {token_dropout}; 0 switches it off")
        self.num_features, self.token_dropout = num_features, token_dropout
        self.question = CharEncoder(
            num_tokens, num_bigrams, dim, char_dim, bigram_dim, question_dilations, dropout, bigram_dropout,
            gate_dropout, sparse,
        )  # fmt: skip
        self.question_pool = AttentionPool1d(dim)
        self.join = nn.Linear(2 * dim + num_features, dim, bias=False)
        self.passage = DGCNN(dim, dilations, gate_dropout=gate_dropout)
        self.presence_pool = AttentionPool1d(2 * dim) if presence else None
        self.presence = nn.Linear(2 * dim, 1) if presence else None
        self.output = nn.Linear(2 * dim, 2)
        for linear in (self.join, self.presence, self.output):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(
        self,
        question: Tensor,
        passage: Tensor,
        question_bigrams: Tensor | None = None,
        passage_bigrams: Tensor | None = None,
        question_mask: Tensor | None = None,
        passage_mask: Tensor | None = None,
        features: Tensor | None = None,
    ) -> ReaderOutput:
        """Logits of start, end and presence, eq. (1) to (5).

        Args:
            question: (B, S) int64 token ids.
            passage: (B, T) int64 token ids.
            question_bigrams: (B, S) int64 pair ids; None for a reader without pairs.
            passage_bigrams: (B, T) int64 pair ids.
            question_mask: (B, S) bool, True = keep; None keeps all.
            passage_mask: (B, T) bool, True = keep; None keeps all. Logits at masked positions mean nothing.
            features: (B, T, F) features of the passage's positions; None for a reader without.

        Returns:
            `ReaderOutput`, in the dtype of the weights, or that of the autocast region.

        Raises:
            ValueError: a shape differs, or features are missing or not expected.
        """
        expected = (*passage.shape, self.num_features) if self.num_features else None
        if (None if features is None else tuple(features.shape)) != expected:
            given = "none" if features is None else str(tuple(features.shape))
            raise ValueError(
                f"this reader was built with num_features={self.num_features} and needs features "
                f"{'None' if expected is None else expected}, got {given}"
            )
        vector = self.question_pool(
            self.question(self._dropped(question), question_bigrams, question_mask), question_mask
        )  # (B, D)  eq. (1)
        x = self.question.embed(self._dropped(passage), passage_bigrams, passage_mask)  # (B, T, D)
        beside = vector[:, None].expand(-1, x.shape[1], -1)  # (B, T, D)
        parts = [x, beside] if features is None else [x, beside, features.to(x.dtype)]
        x = self.passage(self.join(torch.cat(parts, dim=-1)), passage_mask)  # (B, T, D)  eq. (2), (3)
        x = torch.cat([x, beside.to(x.dtype)], dim=-1)  # (B, T, 2 D)
        start, end = self.output(x).unbind(-1)  # (B, T) each
        if self.presence is None or self.presence_pool is None:
            return ReaderOutput(start, end, None)
        return ReaderOutput(start, end, self.presence(self.presence_pool(x, passage_mask))[:, 0])  # eq. (4)

    def sparse_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradient is a sparse tensor: the pair table, or none."""
        return self.question.sparse_parameters()

    def extra_repr(self) -> str:
        """The settings that the parts do not show."""
        return f"num_features={self.num_features}, token_dropout={self.token_dropout}"

    def _dropped(self, ids: Tensor) -> Tensor:
        """Some of the tokens made unknown, in training."""
        if not self.training or not self.token_dropout:
            return ids
        return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.token_dropout, UNK)


def reader_log_probs(logits: Tensor, presence: Tensor | None) -> tuple[Tensor, Tensor]:
    """log P and log(1 - P) of starts or of ends, eq. (5) and (6), in float32 or better.

    Args:
        logits: (B, T) of starts or of ends.
        presence: (B,) of the passage, or None.

    Returns:
        Two (B, T) tensors.

    Raises:
        ValueError: the shapes do not fit.

    >>> log_p, log_not = reader_log_probs(torch.zeros(1, 1), torch.zeros(1))
    >>> log_p.exp(), log_not.exp()
    (tensor([[0.2500]]), tensor([[0.7500]]))
    """
    wide = wide_dtype(logits)
    z = logits.to(wide)
    if presence is None:
        return F.logsigmoid(z), F.logsigmoid(-z)
    if logits.ndim != 2 or presence.shape != logits.shape[:1]:
        raise ValueError(
            f"reader_log_probs needs logits (batch, positions) and presence (batch,); got {tuple(logits.shape)} and "
            f"{tuple(presence.shape)}"
        )
    g = presence.to(wide)[:, None]  # (B, 1)
    log_p = F.logsigmoid(g) + F.logsigmoid(z)  # eq. (5)
    return log_p, torch.logaddexp(F.logsigmoid(-g).expand_as(z), F.logsigmoid(g) + F.logsigmoid(-z))  # eq. (6)
