"""Contract rows of danlu.losses: one a public callable."""

from functools import partial

import torch
from contract import Row

from danlu.losses import (
    multilabel_cross_entropy,
    soft_accuracy_loss,
    soft_f1_loss,
    sparse_multilabel_cross_entropy,
)


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


CLASSES = torch.tensor([[0, 2, 1], [1, -100, 2]])

ROWS: list[Row] = [
    Row("soft_accuracy_loss", lambda: soft_accuracy_loss, lambda dtype: (seeded(2, 3, 3, dtype=dtype), CLASSES), ()),
    Row("soft_f1_loss", lambda: soft_f1_loss, lambda dtype: (seeded(2, 3, 3, dtype=dtype), CLASSES), ()),
    Row(
        "soft_f1_loss[labels]",
        lambda: partial(soft_f1_loss, average="micro", beta=2.0),
        lambda dtype: (seeded(4, 3, dtype=dtype), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])),
        (),
    ),
]

# multilabel


def _multilabel(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    logits = seeded(2, 3, 5, dtype=dtype)
    logits[0, 1, 2] = -torch.inf
    return logits, torch.tensor([[[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0] * 5], [[1] * 5, [0] * 5, [0, 0, 0, 0, 1]]])


def _multilabel_ids(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return _multilabel(dtype)[0], torch.tensor([[[0, 3], [1, -1], [-1, -1]], [[4, 4], [2, 0], [-1, -1]]])


ROWS += [
    Row("multilabel_cross_entropy", lambda: multilabel_cross_entropy, _multilabel, ()),
    Row("sparse_multilabel_cross_entropy", lambda: sparse_multilabel_cross_entropy, _multilabel_ids, ()),
    Row(
        "sparse_multilabel_cross_entropy[mask_zero]",
        lambda: partial(sparse_multilabel_cross_entropy, mask_zero=True, reduction="none"),
        _multilabel_ids,
        (2, 3),
    ),
]
