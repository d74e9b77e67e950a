"""One step of anybody's training loop, changed for a while and always put back."""

from danlu.train.adversarial import fgm_backward, noise_backward, perturbed, pgd_backward
from danlu.train.adversarial_output import (
    fgm_output_backward,
    noise_output_backward,
    output_perturbed,
    pgd_output_backward,
)
from danlu.train.attacks import FGM, PGD, Noise
from danlu.train.exposure_bias import corrupt_targets, gold_share, sampled_inputs

__all__ = [
    "FGM",
    "PGD",
    "Noise",
    "corrupt_targets",
    "fgm_backward",
    "fgm_output_backward",
    "gold_share",
    "noise_backward",
    "noise_output_backward",
    "output_perturbed",
    "perturbed",
    "pgd_backward",
    "pgd_output_backward",
    "sampled_inputs",
]
