r"""A light encoder of characters: a character table, a table of neighbouring pairs, dilated gated convolutions.

    b_i = P[bigram_i]                            the pair (t_{i-1}, t_i); one lookup a position                (1)
    x_i = dropout(W [E[t_i]; b_i; b_{i+1}] + c)  the character, its pair to the left, its pair to the right    (2)
    h   = DGCNN(x)                                                                                             (3)

t_i are token ids and bigram_i pair ids, both with 0 for padding and 1 for unknown (`CharVocab` makes them), E and P
the tables. b_{i+1} is zero where the next position is masked. In training a pair id becomes 1 with probability
`bigram_dropout`, on both sides at once. It is off by default: a vocabulary that leaves out the pairs seen once trains
the unknown row as it is, and on 1.6 million characters of newspaper every share above zero cost accuracy.

The pair table holds nearly all of the parameters, and a batch touches a few of its rows. With `sparse=True` its
gradient holds those rows only: give `sparse_parameters()` to `torch.optim.SparseAdam` and `dense_parameters()` to
any optimizer. SparseAdam leaves the moments of untouched rows as they are, and no weight decay reaches them.
For `torch.compile`, and for optimizers that take all parameters, build with `sparse=False`.

Source: the convolutions kexue.fm/archives/5409; pairs of characters as features of a segmenter Pei et al., 2014,
"Max-margin tensor neural network for Chinese word segmentation" (ACL).
Shapes: B batch, T positions, D features.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.dgcnn import DGCNN

__all__ = ["CharEncoder"]

PAD, UNK = 0, 1


class CharEncoder(nn.Module):
    r"""Token ids and pair ids to one vector a position, eq. (1) to (3).

    Args:
        num_tokens: rows of the character table, `len(vocab)`.
        num_bigrams: rows of the pair table, `vocab.num_bigrams`; 0 builds an encoder without pairs.
        dim: features of the output and of every layer.
        char_dim: features of a character's row.
        bigram_dim: features of a pair's row.
        dilations: one gated convolution for each.
        dropout: share of the features of x that are dropped in training, in [0, 1).
        bigram_dropout: share of the pairs that become unknown in training, in [0, 1).
        gate_dropout: share of the gates of every layer that are set to 1/2 in training, in [0, 1).
        sparse: the gradient of the pair table is a sparse tensor.

    Raises:
        ValueError: a setting is out of its range.

    >>> encoder = CharEncoder(num_tokens=10, num_bigrams=20, dim=4)
    >>> encoder(torch.tensor([[7, 8, 0]]), torch.tensor([[2, 3, 0]]), torch.tensor([[True, True, False]])).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        num_tokens: int,
        num_bigrams: int = 0,
        dim: int = 128,
        char_dim: int = 128,
        bigram_dim: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 1),
        dropout: float = 0.0,
        bigram_dropout: float = 0.0,
        gate_dropout: float = 0.1,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if num_tokens < 2 or num_bigrams < 0 or num_bigrams == 1:
            raise ValueError(
                f"num_tokens must be at least 2 and num_bigrams 0 or at least 2, got {num_tokens} and {num_bigrams}; "
                "rows 0 and 1 are padding and unknown; len(vocab) and vocab.num_bigrams give both numbers"
            )
        if dim < 1 or char_dim < 1 or bigram_dim < 1:
            raise ValueError(f"dim, char_dim and bigram_dim must be at least 1, got {dim}, {char_dim}, {bigram_dim}")
        for name, rate in (("dropout", dropout), ("bigram_dropout", bigram_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {rate}; 0 switches it off")
        self.dropout = dropout
        self.bigram_dropout = bigram_dropout
        self.char_embedding = nn.Embedding(num_tokens, char_dim, padding_idx=PAD)
        self.bigram_embedding: nn.Embedding | None = None
        tables, width = [(self.char_embedding, 0.1)], char_dim
        if num_bigrams:
            self.bigram_embedding = nn.Embedding(num_bigrams, bigram_dim, padding_idx=PAD, sparse=sparse)
            tables.append((self.bigram_embedding, 0.05))  # small: a rare pair should say little
            width += 2 * bigram_dim
        for table, std in tables:
            nn.init.normal_(table.weight, std=std)
            nn.init.zeros_(table.weight[PAD])
        self.project = nn.Linear(width, dim)
        self.dgcnn = DGCNN(dim, dilations=dilations, gate_dropout=gate_dropout)

    def forward(self, ids: Tensor, bigram_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """One vector a position, (B, T, D); zeros where the mask is False.

        Args:
            ids: (B, T) int64 token ids.
            bigram_ids: (B, T) int64 pair ids, the pair that ends at the position; None for an encoder without pairs.
            mask: (B, T) bool, True = keep; None keeps all. What stands at masked positions has no influence.

        Returns:
            (B, T, D) in the dtype of the weights, or that of the autocast region.

        Raises:
            ValueError: a shape differs, the mask is not bool, or pair ids are missing or not expected.
        """
        return self.dgcnn(self.embed(ids, bigram_ids, mask), mask)  # eq. (3)

    def embed(self, ids: Tensor, bigram_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the convolutions are given, (B, T, D), eq. (1) and (2); anything where the mask is False.

        Args:
            ids: (B, T) int64 token ids.
            bigram_ids: (B, T) int64 pair ids; None for an encoder without pairs.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, T, D) in the dtype of the weights, or that of the autocast region.

        Raises:
            ValueError: a shape differs, the mask is not bool, or pair ids are missing or not expected.
        """
        self._check(ids, bigram_ids, mask)
        if mask is not None:
            ids = ids.masked_fill(~mask, PAD)
        parts = [self.char_embedding(ids)]  # (B, T, char_dim)
        if self.bigram_embedding is not None and bigram_ids is not None:
            if self.training and self.bigram_dropout:
                drop = torch.rand(bigram_ids.shape, device=ids.device) < self.bigram_dropout
                bigram_ids = bigram_ids.masked_fill(drop, UNK)
            if mask is not None:
                bigram_ids = bigram_ids.masked_fill(~mask, PAD)
            left = self.bigram_embedding(bigram_ids)  # (B, T, bigram_dim)  eq. (1)
            right = F.pad(left[:, 1:], (0, 0, 0, 1))  # the pair to the right is the next one's pair to the left
            parts += [left, right]
        x = self.project(torch.cat(parts, dim=-1))  # (B, T, D)
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)  # eq. (2); behind W it is half as wide, and in bfloat16 under autocast
        return x

    def sparse_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradient is a sparse tensor: the pair table, or none; for `torch.optim.SparseAdam`."""
        if self.bigram_embedding is not None and self.bigram_embedding.sparse:
            yield cast(nn.Parameter, self.bigram_embedding.weight)

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters, for any optimizer."""
        sparse = {id(parameter) for parameter in self.sparse_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in sparse)

    def extra_repr(self) -> str:
        """The settings that the parts do not show."""
        return f"dropout={self.dropout}, bigram_dropout={self.bigram_dropout}"

    def _check(self, ids: Tensor, bigram_ids: Tensor | None, mask: Tensor | None) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids must be (batch, positions), got {tuple(ids.shape)}; for one text add ids[None]")
        if (bigram_ids is None) != (self.bigram_embedding is None):
            raise ValueError(
                "this encoder has a pair table and needs bigram_ids; CharVocab.encode returns them beside the ids"
                if bigram_ids is None
                else "this encoder has no pair table, but bigram_ids were given; num_bigrams > 0 builds one"
            )
        if bigram_ids is not None and bigram_ids.shape != ids.shape:
            raise ValueError(f"bigram_ids must be {tuple(ids.shape)} like ids, got {tuple(bigram_ids.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != ids.shape):
            raise ValueError(
                f"mask must be bool {tuple(ids.shape)}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
                "Turn a 0/1 mask into one with mask.bool()."
            )
