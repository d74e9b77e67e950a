r"""What a classifier of texts or pairs is trained on besides cross-entropy, as the tricks ask.

    f1, accuracy    the soft metric of the batch (`danlu.losses`)
    rdrop           two draws of dropout for every row, which must agree (`danlu.train.r_drop_loss`)
    mixup           the vectors under the last layer, and the targets, mixed in pairs (`danlu.train.mixup`)     (1)

Texts have different lengths, and a transformer reads a batch of them without padding, so mixup mixes what pooling has
made of them, after dropout ("sentence mixup").

Source: each function names its own; (1): Guo et al., 2019, arXiv:1905.08941.
Shapes: B batch, K outputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.losses import soft_accuracy_loss, soft_f1_loss
from danlu.train import doubled, draw_mix, mix_targets, mixup_loss, output_mixed, r_drop_loss

__all__ = ["Objective", "classification_loss"]


@dataclass(frozen=True)
class Objective:
    """What takes the place of cross-entropy in a step."""

    kind: str  # "f1", "accuracy", "rdrop" or "mixup"
    strength: float = 0.0  # alpha of rdrop and of mixup
    seed: int = 0  # of the pairs of mixup


class Classifier(Protocol):
    """A model with classes as outputs whose last layer follows one call of its dropout."""

    dropout: nn.Dropout

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, K)."""
        ...


def classification_loss(model: Classifier, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
    """Sum over the batch of the cross-entropy, or of what the objective puts in its place.

    Args:
        model: gives logits (B, K) of a batch.
        batch: what the model reads, and "label" (B,) int64.
        objective: what to train on; None: cross-entropy.

    Returns:
        Scalar.
    """
    target = batch["label"]
    kind = objective.kind if objective is not None else ""
    if objective is not None and kind == "mixup":
        generator = torch.Generator(target.device).manual_seed(objective.seed)
        mix = draw_mix(len(target), objective.strength, generator=generator, device=target.device)
        with output_mixed(model.dropout, mix):  # eq. (1)
            logits = model.logits(batch)
        return mixup_loss(logits, mix_targets(target, mix), reduction="sum")
    if objective is not None and kind == "rdrop":
        first, second = model.logits(doubled(batch)).chunk(2)
        return r_drop_loss(first, second, target, objective.strength) * len(target)
    logits = model.logits(batch)
    if kind == "f1":
        return soft_f1_loss(logits, target, average="macro") * len(target)
    if kind == "accuracy":
        return soft_accuracy_loss(logits, target) * len(target)
    return F.cross_entropy(logits, target, reduction="sum")
