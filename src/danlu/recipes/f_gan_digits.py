r"""f-GAN on digits: ten divergences, one network, and the spread of the seeds.

Claim  kexue.fm/archives/6016: the f-GANs share the faults of the standard one; the worth of the scheme is that it makes
       them all, not that one f is better (arXiv:1606.00709 reads its samples likewise; no figures compared).
Test   the same perceptrons with every f (non-saturating), and saturating ones for KL and JS: Frechet distance on the
       features of a classifier, its floor (dev against test part), classes reached, error of the critic's odds on
       examples it has not seen; the spread over f beside that over seeds tells whether f matters.
Data   digits of scikit-learn
Run    danlu run f_gan_digits --scale smoke|full --seed 0 --set steps=2000
"""

from dataclasses import dataclass

import torch

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import FGANLoss
from danlu.math import F_DIVERGENCES
from danlu.recipes._digit_gan import DigitGAN, Judge, picture

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """One GAN a divergence."""

    divergences: int = len(F_DIVERGENCES)  # the first so many
    steps: int = 4_000
    judge_steps: int = 600
    samples: int = 1_000


SCALES = {
    "smoke": Config(divergences=2, steps=15, judge_steps=20, samples=200),
    "full": Config(),
}


def run(config: Config, seed: int) -> Result:
    """Every arm from the same weights and noise."""
    arms = [(name, "non_saturating") for name in list(F_DIVERGENCES)[: config.divergences]]
    arms += [("kl", "saturating"), ("js", "saturating")] if config.divergences > 2 else []
    judge = Judge.train(config.judge_steps, seed)
    measured = {"floor: distance": judge.score(load_digits().dev[0])["distance"]}
    pictures, distances = {}, []
    for name, mode in arms:
        gan, label = DigitGAN(seed), name if mode == "non_saturating" else f"{name}, saturating"
        gan.train(FGANLoss(name, mode), config.steps)
        fake = gan.sample(config.samples).detach()
        if not bool(fake.isfinite().all()):
            measured[f"{label}: broke down"] = 1.0
            continue
        measured |= {f"{label}: {key}": value for key, value in judge.score(fake).items()}
        if name != "total_variation":  # its v is no log-ratio
            measured[f"{label}: error of the odds"] = gan.calibration_error(lambda v: v)
        pictures[label] = picture(fake[:16])
        if mode == "non_saturating":
            distances.append(measured[f"{label}: distance"])
    spread = torch.tensor(distances, dtype=torch.float64)
    measured["distance, median over f"] = spread.median().item()
    measured["distance, spread over f"] = spread.std(correction=0).item()
    return Result(measured=measured, figures={"samples": pictures})
