r"""GAN losses designed from the likelihood ratio: which find the data, exactly on tables and on digits.

Claim  kexue.fm/archives/7210: one scheme gives the usual GAN losses and new ones ("KL generator"), with no breakthrough
       in quality; its sufficient condition also admits least squares with the midpoint as the generator's target.
       (No figures in the post.)
Test   exact games of 8 outcomes, the best critic answering each step: total variation left after training, the
       largest over starts, for each preset and for the midpoint. Then the same perceptrons on digits with each preset:
       Frechet distance on a classifier's features, its floor (dev against test part), classes reached, and how far the
       critic's odds are from the truth.
Data   digits of scikit-learn
Run    danlu run designing_gans --scale smoke|full --seed 0 --set steps=1000
"""

from dataclasses import dataclass

import torch

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.generative import play_finite_game
from danlu.losses import GanGame, game_log_ratio, gan_game, least_squares_game
from danlu.recipes._digit_gan import DigitGAN, Judge, picture

__all__ = ["SCALES", "Config", "run"]

PRESETS = ("gan", "non_saturating", "kl_generator", "least_squares", "hellinger", "kliep", "hinge", "total_variation")
KNOW_RATIO = PRESETS[:6]


@dataclass(frozen=True)
class Config:
    """Sizes; the exact games take plain steps of length `table_lr`."""

    outcomes: int = 8
    table_lr: float = 2.0
    table_steps: int = 3_000
    starts: int = 4
    presets: int = len(PRESETS)  # the first so many on digits
    steps: int = 4_000
    judge_steps: int = 600
    samples: int = 1_000


SCALES = {
    "smoke": Config(table_steps=40, starts=1, presets=2, steps=20, judge_steps=20, samples=200),
    "full": Config(),
}


def tables(config: Config, game: str | GanGame, seed: int) -> tuple[float, list[float]]:
    """The largest total variation left over the starts, and its course in the first of them."""
    left, course = [], []
    for start in range(config.starts):
        draw = torch.Generator().manual_seed(1_000 * seed + start)
        p = torch.randn(config.outcomes, generator=draw).softmax(0)
        logits = torch.randn(config.outcomes, generator=draw)
        found = play_finite_game(p, logits, game, config.table_lr, config.table_steps)
        left.append(found.distances[-1].item())
        course = course or found.distances[:: max(1, config.table_steps // 100)].tolist()
    return max(left), course


def run(config: Config, seed: int) -> Result:
    """Both tests, every preset from the same weights and noise."""
    measured: dict[str, float] = {}
    courses, pictures = {}, {}
    games: dict[str, str | GanGame] = {name: name for name in KNOW_RATIO}
    games["least squares, midpoint"] = least_squares_game(1.0, -1.0, target=0.0)
    for name, game in games.items():
        measured[f"table, {name}: left"], courses[name] = tables(config, game, seed)
    judge = Judge.train(config.judge_steps, seed)
    measured["digits, floor: distance"] = judge.score(load_digits().dev[0])["distance"]
    for name in PRESETS[: config.presets]:
        gan = DigitGAN(seed)
        gan.train(name, config.steps)
        fake = gan.sample(config.samples).detach()
        measured |= {f"digits, {name}: {key}": value for key, value in judge.score(fake).items()}
        if name in KNOW_RATIO:
            error = gan.calibration_error(lambda s, name=name: game_log_ratio(s, gan_game(name)))
            measured[f"digits, {name}: error of the odds"] = error
        pictures[name] = picture(fake[:16])
    return Result(measured=measured, figures={"total variation": courses, "samples": pictures})
