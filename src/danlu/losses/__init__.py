"""Losses."""

from danlu.losses.multilabel import multilabel_cross_entropy, sparse_multilabel_cross_entropy
from danlu.losses.soft_metrics import soft_accuracy_loss, soft_f1_loss

__all__ = ["multilabel_cross_entropy", "soft_accuracy_loss", "soft_f1_loss", "sparse_multilabel_cross_entropy"]
