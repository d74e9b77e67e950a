"""Contract rows of danlu.losses: one a public callable."""

from functools import partial

import torch
from contract import Row

from danlu import losses
from danlu.losses import (
    multilabel_cross_entropy,
    power_binary_cross_entropy,
    power_sigmoid,
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

# power_activation


def _rare(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return seeded(2, 5, 3, dtype=dtype), torch.tensor([[[0, 1, 0]] * 5, [[1, 0, 0]] * 5])


ROWS += [
    Row("power_sigmoid", lambda: partial(power_sigmoid, power=4.0), lambda dtype: _rare(dtype)[:1], (2, 5, 3)),
    Row("power_binary_cross_entropy", lambda: partial(power_binary_cross_entropy, power=4.0), _rare, ()),
]

# focal


def _yes_or_no(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    z = seeded(2, 3, dtype=dtype)
    keep = torch.tensor([[True, True, False], [True, False, True]])
    logs = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    return *logs, torch.tensor([[1, 0, 0], [0, 1, 1]]), keep


ROWS += [
    Row("focal_loss", lambda: losses.focal_loss, _yes_or_no, ()),
    Row("focal_loss[none]", lambda: partial(losses.focal_loss, reduction="none"), _yes_or_no, (2, 3)),
]
