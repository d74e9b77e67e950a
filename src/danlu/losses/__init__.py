"""Losses."""

from danlu.losses.contrastive import contrastive_stats, flat_nce, info_nce
from danlu.losses.contrastive_pairs import ContrastiveLoss, Scores, contrastive_scores
from danlu.losses.cosent import CoSENTLoss, cosent_loss
from danlu.losses.f_gan import FGANLoss, f_gan_critic_loss, f_gan_generator_loss
from danlu.losses.focal import focal_loss
from danlu.losses.gan import (
    GanGame,
    gan_critic_loss,
    gan_game,
    gan_generator_loss,
    least_squares_game,
    power_game,
)
from danlu.losses.gan_check import GameReport, check_game, game_report
from danlu.losses.likelihood_ratio import RatioBalance, game_log_ratio, ratio_balance, ratio_game
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
    "FGANLoss",
    "GameReport",
    "GanGame",
    "LossRatio",
    "RatioBalance",
    "Scores",
    "SpectralPenalty",
    "UncertaintyLoss",
    "check_game",
    "class_prior_loss",
    "contrastive_scores",
    "contrastive_stats",
    "cosent_loss",
    "f_gan_critic_loss",
    "f_gan_generator_loss",
    "flat_nce",
    "focal_loss",
    "game_log_ratio",
    "game_report",
    "gan_critic_loss",
    "gan_game",
    "gan_generator_loss",
    "geometric_mean_loss",
    "info_nce",
    "least_squares_game",
    "loss_ratio",
    "multilabel_cross_entropy",
    "power_binary_cross_entropy",
    "power_game",
    "power_mean_loss",
    "power_sigmoid",
    "ratio_balance",
    "ratio_game",
    "regression_prior_loss",
    "soft_accuracy_loss",
    "soft_f1_loss",
    "sparse_multilabel_cross_entropy",
    "spectral_penalty",
    "uncertainty_loss",
]
