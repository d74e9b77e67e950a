"""Losses."""

from danlu.losses.contrastive import contrastive_stats, flat_nce, info_nce
from danlu.losses.contrastive_pairs import ContrastiveLoss, Scores, contrastive_scores
from danlu.losses.cosent import CoSENTLoss, cosent_loss
from danlu.losses.focal import focal_loss
from danlu.losses.multilabel import multilabel_cross_entropy, sparse_multilabel_cross_entropy
from danlu.losses.power_activation import power_binary_cross_entropy, power_sigmoid
from danlu.losses.prior_loss import class_prior_loss, regression_prior_loss
from danlu.losses.soft_metrics import soft_accuracy_loss, soft_f1_loss
from danlu.losses.spectral_penalty import SpectralPenalty, spectral_penalty
from danlu.losses.task_weights import LossRatio, geometric_mean_loss, loss_ratio, power_mean_loss
from danlu.losses.uncertainty import UncertaintyLoss, uncertainty_loss

__all__ = [
    "CoSENTLoss",
    "ContrastiveLoss",
    "LossRatio",
    "Scores",
    "SpectralPenalty",
    "UncertaintyLoss",
    "class_prior_loss",
    "contrastive_scores",
    "contrastive_stats",
    "cosent_loss",
    "flat_nce",
    "focal_loss",
    "geometric_mean_loss",
    "info_nce",
    "loss_ratio",
    "multilabel_cross_entropy",
    "power_binary_cross_entropy",
    "power_mean_loss",
    "power_sigmoid",
    "regression_prior_loss",
    "soft_accuracy_loss",
    "soft_f1_loss",
    "sparse_multilabel_cross_entropy",
    "spectral_penalty",
    "uncertainty_loss",
]
