"""Losses."""

from danlu.losses.focal import focal_loss
from danlu.losses.multilabel import multilabel_cross_entropy, sparse_multilabel_cross_entropy
from danlu.losses.power_activation import power_binary_cross_entropy, power_sigmoid
from danlu.losses.soft_metrics import soft_accuracy_loss, soft_f1_loss

__all__ = [
    "focal_loss",
    "multilabel_cross_entropy",
    "power_binary_cross_entropy",
    "power_sigmoid",
    "soft_accuracy_loss",
    "soft_f1_loss",
    "sparse_multilabel_cross_entropy",
]
