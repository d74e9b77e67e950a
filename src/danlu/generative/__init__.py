"""Generative models: autoencoders, flows, adversarial and energy-based ones."""

from danlu.generative.aae import AAE, aae_loss
from danlu.generative.ali import ALI, ali_loss
from danlu.generative.annealed_importance import AnnealedEstimate, NormalBase, UniformBase, annealed_importance
from danlu.generative.ans import BitStack, cumulative_frequencies
from danlu.generative.bits_back import FlowCoder, LatentCoder
from danlu.generative.chain_diagnostics import chain_ess, split_r_hat
from danlu.generative.compressed import compress, decompress
from danlu.generative.dequantization import VariationalNoise, dequantize, quantize
from danlu.generative.divergence_estimate import (
    DivergenceEstimate,
    divergence_from_scores,
    donsker_varadhan,
    estimate_divergence,
)
from danlu.generative.em import EMResult, GaussianMixture, em_step, gaussian_mixture_fit, mixture_log_joint
from danlu.generative.energy import EnergyConfig, EnergyModel
from danlu.generative.energy_loss import all_of, any_of, energy_loss, logits_energy
from danlu.generative.energy_net import EnergyNet
from danlu.generative.evaluation import Interval, SampleEvaluation, evaluate_samples
from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.feature_net import FeatureNet, FeatureNetConfig, train_feature_net
from danlu.generative.finite_game import FiniteGame, best_scores, finite_game_gradient, play_finite_game
from danlu.generative.flow import Flow
from danlu.generative.flow_builders import glow, nice, realnvp
from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_layers import FlowStep, LogitTransform, MultiScale
from danlu.generative.flow_networks import ConvNet, DenseNet, ScaledConv2d
from danlu.generative.flow_report import FlowReport, flow_report, inverse_gain
from danlu.generative.gan import (
    AdversarialLoss,
    CriticStep,
    critic_objective,
    critic_step,
    generator_objective,
    generator_step,
    held,
)
from danlu.generative.gan_config import CriticConfig, GeneratorConfig, StyleConfig, stage_sides
from danlu.generative.gan_critic import ImageCritic
from danlu.generative.gan_generator import ImageGenerator
from danlu.generative.image_range import to_levels, to_signed
from danlu.generative.joint_kl import JointKL, free_energy, joint_kl
from danlu.generative.joint_table import AdversarialTerms, KLChain, adversarial_terms, kl_chain, proximal_step
from danlu.generative.langevin import Langevin, langevin, langevin_temperature, latent_energy
from danlu.generative.latent import draw_normal, normal_log_prob, soft_clamp, standard_normal_kl
from danlu.generative.latent_hierarchy import GroupDraw, LatentHierarchy
from danlu.generative.latent_paths import spherical_path
from danlu.generative.latent_usage import LatentUsage, latent_usage
from danlu.generative.likelihood import Likelihood
from danlu.generative.likelihood_continuous import ContinuousBernoulliLikelihood, GaussianLikelihood
from danlu.generative.likelihood_discrete import BernoulliLikelihood, LogisticLikelihood, LogisticMixtureLikelihood
from danlu.generative.likelihoods import make_likelihood
from danlu.generative.log_ratio import fit_log_ratio, log_ratio_critic
from danlu.generative.mala import MALAResult, mala
from danlu.generative.nvae import NVAE, NVAEOutput
from danlu.generative.nvae_bound import nvae_log_prob, nvae_log_weights
from danlu.generative.nvae_cells import MakingCell, ReadingCell
from danlu.generative.nvae_config import NVAE_CONFIGS, NVAEConfig, adaptive_groups
from danlu.generative.nvae_layers import FactorizedReduce, LogNormConv2d, SqueezeExcitation
from danlu.generative.nvae_networks import BottomUp, LatentGroup, TopDown
from danlu.generative.nvae_objective import group_alphas, group_balance, kl_warmup
from danlu.generative.nvae_penalty import SpectralSum, norm_gain_sum
from danlu.generative.proximity import ProximalGenerator, proximity_penalty
from danlu.generative.replay_buffer import ReplayBuffer
from danlu.generative.residual_normal import (
    DiagonalNormal,
    channel_kl,
    clamped_normal,
    residual_log_ratio,
    residual_normal,
)
from danlu.generative.sample_history import SampleHistory
from danlu.generative.sampling_statistics import sampling_statistics
from danlu.generative.style_generator import StyleGenerator
from danlu.generative.toy_data import TOY_DATA, Checkerboard, GaussianBeads, grid, moons, ring, spiral, toy_coverage
from danlu.generative.training_state import load_state, save_state
from danlu.generative.vae import VAE, VAEOutput
from danlu.generative.vae_bound import LatentModel, MeanLogProb, mean_log_prob, vae_log_prob, vae_log_weights
from danlu.generative.vae_config import VAEConfig
from danlu.generative.vae_networks import ConvDecoder, conv_encoder, mlp_decoder, mlp_encoder
from danlu.generative.vae_objective import latent_log_weights, variational_loss
from danlu.generative.weight_history import WeightHistory, history_penalty

__all__ = [
    "AAE",
    "ALI",
    "NVAE",
    "NVAE_CONFIGS",
    "TOY_DATA",
    "VAE",
    "AdversarialLoss",
    "AdversarialTerms",
    "AnnealedEstimate",
    "BernoulliLikelihood",
    "BitStack",
    "BottomUp",
    "Checkerboard",
    "ContinuousBernoulliLikelihood",
    "ConvDecoder",
    "ConvNet",
    "CriticConfig",
    "CriticStep",
    "DenseNet",
    "DiagonalNormal",
    "DivergenceEstimate",
    "EMResult",
    "EnergyConfig",
    "EnergyModel",
    "EnergyNet",
    "FactorizedReduce",
    "FeatureNet",
    "FeatureNetConfig",
    "FiniteGame",
    "Flow",
    "FlowCoder",
    "FlowConfig",
    "FlowReport",
    "FlowStep",
    "GaussianBeads",
    "GaussianLikelihood",
    "GaussianMixture",
    "GeneratorConfig",
    "GroupDraw",
    "ImageCritic",
    "ImageGenerator",
    "Interval",
    "JointKL",
    "KLChain",
    "Langevin",
    "LatentCoder",
    "LatentGroup",
    "LatentHierarchy",
    "LatentModel",
    "LatentUsage",
    "Likelihood",
    "LogNormConv2d",
    "LogisticLikelihood",
    "LogisticMixtureLikelihood",
    "LogitTransform",
    "MALAResult",
    "MakingCell",
    "MeanLogProb",
    "MultiScale",
    "NVAEConfig",
    "NVAEOutput",
    "NormalBase",
    "ProximalGenerator",
    "ReadingCell",
    "ReplayBuffer",
    "SampleEvaluation",
    "SampleHistory",
    "ScaledConv2d",
    "SpectralSum",
    "SqueezeExcitation",
    "StyleConfig",
    "StyleGenerator",
    "TopDown",
    "UniformBase",
    "VAEConfig",
    "VAEOutput",
    "VariationalNoise",
    "WeightHistory",
    "aae_loss",
    "adaptive_groups",
    "adversarial_terms",
    "ali_loss",
    "all_of",
    "annealed_importance",
    "any_of",
    "best_scores",
    "chain_ess",
    "channel_kl",
    "clamped_normal",
    "compress",
    "conv_encoder",
    "critic_objective",
    "critic_step",
    "cumulative_frequencies",
    "decompress",
    "dequantize",
    "divergence_from_scores",
    "donsker_varadhan",
    "draw_normal",
    "em_step",
    "energy_loss",
    "estimate_divergence",
    "evaluate_samples",
    "evaluation_mode",
    "finite_game_gradient",
    "fit_log_ratio",
    "flow_report",
    "free_energy",
    "gaussian_mixture_fit",
    "generator_objective",
    "generator_step",
    "glow",
    "grid",
    "group_alphas",
    "group_balance",
    "held",
    "history_penalty",
    "inverse_gain",
    "joint_kl",
    "kl_chain",
    "kl_warmup",
    "langevin",
    "langevin_temperature",
    "latent_energy",
    "latent_log_weights",
    "latent_usage",
    "load_state",
    "log_ratio_critic",
    "logits_energy",
    "make_likelihood",
    "mala",
    "mean_log_prob",
    "mixture_log_joint",
    "mlp_decoder",
    "mlp_encoder",
    "moons",
    "nice",
    "norm_gain_sum",
    "normal_log_prob",
    "nvae_log_prob",
    "nvae_log_weights",
    "play_finite_game",
    "proximal_step",
    "proximity_penalty",
    "quantize",
    "realnvp",
    "residual_log_ratio",
    "residual_normal",
    "ring",
    "sampling_statistics",
    "save_state",
    "soft_clamp",
    "spherical_path",
    "spiral",
    "split_r_hat",
    "stage_sides",
    "standard_normal_kl",
    "to_levels",
    "to_signed",
    "toy_coverage",
    "train_feature_net",
    "vae_log_prob",
    "vae_log_weights",
    "variational_loss",
]
