"""One step of anybody's training loop, changed for a while and always put back."""

from danlu.train.adversarial import fgm_backward, noise_backward, perturbed, pgd_backward
from danlu.train.adversarial_output import (
    fgm_output_backward,
    noise_output_backward,
    output_perturbed,
    pgd_output_backward,
)
from danlu.train.attacks import FGM, PGD, Noise
from danlu.train.capture import Captured, capture, capture_call
from danlu.train.critic_penalty import critic_penalty, mixed_examples, slope_penalty
from danlu.train.exposure_bias import corrupt_targets, gold_share, sampled_inputs
from danlu.train.freelb import FreeLB, freelb_backward
from danlu.train.gradient_penalty import GradientPenalty, gradient_penalty, penalized_loss
from danlu.train.linearity import interpolation_loss, linearity_gap
from danlu.train.manifold_mixup import ManifoldMixup, output_mixed
from danlu.train.mixup import (
    MixedTarget,
    Mixup,
    mix_targets,
    mixup,
    mixup_loss,
    smoothing_strength,
    soft_targets,
)
from danlu.train.multitask import MultiTask, multitask_backward
from danlu.train.pairing import Mix, draw_mix, mix_inputs, mix_masks
from danlu.train.policy_gradient import (
    RunningBaseline,
    choice_log_prob,
    expected_reward_loss,
    leave_one_out,
    policy_gradient_loss,
    sampled_reward_loss,
)
from danlu.train.r_drop import RDrop, doubled, kl_bernoulli, kl_categorical, r_drop_loss, symmetric_divergence
from danlu.train.sample_pairing import sample_pairing, sample_pairing_on
from danlu.train.virtual_adversarial import VAT, entropy_loss, vat_loss, vat_output_loss

__all__ = [
    "FGM",
    "PGD",
    "VAT",
    "Captured",
    "FreeLB",
    "GradientPenalty",
    "ManifoldMixup",
    "Mix",
    "MixedTarget",
    "Mixup",
    "MultiTask",
    "Noise",
    "RDrop",
    "RunningBaseline",
    "capture",
    "capture_call",
    "choice_log_prob",
    "corrupt_targets",
    "critic_penalty",
    "doubled",
    "draw_mix",
    "entropy_loss",
    "expected_reward_loss",
    "fgm_backward",
    "fgm_output_backward",
    "freelb_backward",
    "gold_share",
    "gradient_penalty",
    "interpolation_loss",
    "kl_bernoulli",
    "kl_categorical",
    "leave_one_out",
    "linearity_gap",
    "mix_inputs",
    "mix_masks",
    "mix_targets",
    "mixed_examples",
    "mixup",
    "mixup_loss",
    "multitask_backward",
    "noise_backward",
    "noise_output_backward",
    "output_mixed",
    "output_perturbed",
    "penalized_loss",
    "perturbed",
    "pgd_backward",
    "pgd_output_backward",
    "policy_gradient_loss",
    "r_drop_loss",
    "sample_pairing",
    "sample_pairing_on",
    "sampled_inputs",
    "sampled_reward_loss",
    "slope_penalty",
    "smoothing_strength",
    "soft_targets",
    "symmetric_divergence",
    "vat_loss",
    "vat_output_loss",
]
