"""Contract rows of danlu.losses: one a public callable."""

from functools import partial

import torch
from contract import Row

from danlu.losses import soft_accuracy_loss, soft_f1_loss


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
