r"""Attention pooling: a sequence becomes one vector, the average that a small scorer asks for.

    e_t = w^T tanh(W x_t)                                                            (1)
    a = softmax over the kept t of e                                                 (2)
    v = sum_t a_t x_t                                                                (3)

x_t are the vectors, W (H, D) and w (H) the scorer, both without bias. A row that keeps nothing gives v = 0.

Source: kexue.fm/archives/5409; additive attention of Bahdanau et al., 2014, arXiv:1409.0473.
Shapes: B batch, T positions, D features, H hidden units of the scorer.
"""

import torch
from torch import Tensor, nn

__all__ = ["AttentionPool1d", "attention_pool"]


def attention_pool(x: Tensor, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """The average of the kept vectors with weights softmax(scores), eq. (2) and (3).

    Args:
        x: (B, T, D) vectors, any float dtype.
        scores: (B, T) logits of the weights.
        mask: (B, T) bool, True = keep; None keeps all.

    Returns:
        (B, D) in the dtype of x; zeros for rows that keep nothing.

    Raises:
        ValueError: the shapes do not fit together, or mask is not bool.

    >>> attention_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.zeros(1, 3), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    if x.ndim != 3 or scores.shape != x.shape[:2]:
        raise ValueError(
            f"attention_pool needs x (batch, positions, features) and scores (batch, positions); got {tuple(x.shape)} "
            f"and {tuple(scores.shape)}. For a module that computes the scores use AttentionPool1d(features)(x)."
        )
    scores = scores.double() if scores.dtype == torch.float64 else scores.float()
    if mask is None:
        weights = scores.softmax(dim=1)  # (B, T)  eq. (2)
    else:
        if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask must be bool {tuple(x.shape[:2])}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
                "Turn a 0/1 mask into one with mask.bool()."
            )
        lowest = torch.finfo(scores.dtype).min  # not -inf, which makes a row without kept steps nan
        weights = scores.masked_fill(~mask, lowest).softmax(dim=1)  # (B, T)  eq. (2)
        x = x.masked_fill(~mask[..., None], 0)  # a fill, because 0 * nan is nan
    return (weights.to(x.dtype)[..., None] * x).sum(dim=1)  # (B, D)  eq. (3)


class AttentionPool1d(nn.Module):
    r"""`attention_pool` whose scores come from the vectors themselves, eq. (1).

    Args:
        dim: features D of the vectors.
        hidden: hidden units H of the scorer; None takes `dim`.

    Raises:
        ValueError: a size is below 1.

    >>> AttentionPool1d(8)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = dim if hidden is None else hidden
        if dim < 1 or hidden < 1:
            raise ValueError(f"dim and hidden must be at least 1, got {dim} and {hidden}; hidden=None takes dim")
        self.hidden = nn.Linear(dim, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.xavier_uniform_(self.score.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector for each sequence, (B, D).

        Args:
            x: (B, T, D) vectors, any float dtype; what stands at masked positions has no influence.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, D) in the dtype of x; zeros for rows that keep nothing.

        Raises:
            ValueError: x or mask has another shape, or mask is not bool.
        """
        if x.ndim != 3 or x.shape[-1] != self.hidden.in_features:
            raise ValueError(
                f"AttentionPool1d({self.hidden.in_features}) needs x (batch, positions, {self.hidden.in_features}); "
                f"got {tuple(x.shape)}"
            )
        if mask is not None and mask.shape == x.shape[:2] and mask.dtype == torch.bool:  # else attention_pool complains
            x = x.masked_fill(~mask[..., None], 0)
        scores = self.score(torch.tanh(self.hidden(x)))[..., 0]  # (B, T)  eq. (1)
        return attention_pool(x, scores, mask)
