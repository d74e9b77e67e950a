"""Losses."""

from danlu.losses.soft_metrics import soft_accuracy_loss, soft_f1_loss

__all__ = ["soft_accuracy_loss", "soft_f1_loss"]
