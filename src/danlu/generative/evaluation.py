r"""Generated samples beside real ones: every distance with its interval, and beside what chance alone would show.

    n = min(floor(N / 2), M);   real -> A, B of n each,   fake -> F of n, all by chance                        (1)
    fake: measures of (A, F),     floor: measures of (A, B)                                                    (2)

A distance of two samples says nothing until one knows what two samples of the same law show: (2) takes the same
number of images, the same reference and the same network for both. A generator whose interval overlaps that of the
floor cannot be told from the data by this measure and this many images.

Measures:
    frechet          as it is, which depends on n; interval of the jackknife over groups
    frechet_limit    for n -> infinity (`danlu.math.frechet_estimate`), the same error
    kernel           unbiased, cubic; interval of the jackknife, normal
    precision, recall, density, coverage    interval of the bootstrap over what each is a mean of, the balls held fixed

The bootstrap is not used where it is wrong: drawing features with replacement adds to the Frechet distance its bias a
second time, and copies within a set shrink the balls of the last four to nothing. Intervals of shares at 0 or 1 have no
width. The Frechet intervals need n well above the number of features and are left out below.

Classes: a classifier's labels of F against those of A (`danlu.math.mode_coverage`): classes hit, share of samples in
classes that A has, KL of the label histogram. The KL of B is its floor; the record's own (K - 1) / 2n takes A's
shares for the true ones.

Source: own protocol; the measures' sources stand in their files.
Shapes: N real, M generated images (N, C, H, W) or vectors (N, D'); D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.feature_net import FeatureNet
from danlu.math.frechet import frechet_distance, frechet_estimate
from danlu.math.importance import bootstrap_interval
from danlu.math.kernel_distance import kernel_estimate
from danlu.math.manifold_metrics import density_coverage, precision_recall
from danlu.math.mode_coverage import ModeCoverage, mode_coverage
from danlu.math.student_t import student_t_quantile

__all__ = ["Interval", "SampleEvaluation", "evaluate_samples"]

GROUPS = 20  # of the jackknife


class Interval(NamedTuple):
    """A measure and the ends of its interval; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SampleEvaluation:
    """What eq. (2) gives.

    count: n. fake, floor: measures by name. fake_classes, floor_classes: of the labels, None without a classifier.
    space: fingerprint of the FeatureNet, "" for other features.
    """

    count: int
    fake: dict[str, Interval]
    floor: dict[str, Interval]
    fake_classes: ModeCoverage | None
    floor_classes: ModeCoverage | None
    space: str

    def as_dict(self) -> dict[str, Any]:
        """The same as plain numbers, lists and words, as JSON holds them."""
        told: dict[str, Any] = {"count": self.count, "space": self.space}
        for part, measures, classes in (
            ("fake", self.fake, self.fake_classes),
            ("floor", self.floor, self.floor_classes),
        ):
            told[part] = {name: interval._asdict() for name, interval in measures.items()}
            if classes is not None:
                kl = classes.kl if math.isfinite(classes.kl) else None
                told[part]["classes"] = {"hit": classes.hit, "known": classes.good, "kl": kl}
                told[part]["classes"]["counts"] = classes.counts.tolist()
        return told


def evaluate_samples(
    real: Tensor,
    fake: Tensor,
    features: FeatureNet | Callable[[Tensor], Tensor],
    classify: Callable[[Tensor], Tensor] | None = None,
    k_recall: int = 3,
    k_coverage: int = 5,
    level: float = 0.95,
    num_replicates: int = 1000,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
) -> SampleEvaluation:
    """All measures of generated samples with intervals and floors, eqs. (1) and (2).

    Args:
        real: (N, ...), images that neither the generator nor the features were trained on.
        fake: (M, ...), samples of the kind; at least N / 2 of them use all of the real ones.
        features: a FeatureNet, or what takes (n, ...) to (n, D) floats of one scale; modules run in evaluation mode.
        classify: from (n, ...) to (n,) labels int64 >= 0; None for the classes of the FeatureNet, or for none.
        k_recall: neighbours of precision and recall.
        k_coverage: neighbours of density and coverage.
        level: of the intervals, in (0, 1).
        num_replicates: of the bootstrap, >= 2.
        batch_size: images that go through the network at a time.
        generator: for the choice of eq. (1), groups and bootstrap, on the CPU.

    Returns:
        The record.

    Raises:
        ValueError: too few images for the neighbours, features of another shape or not finite, numbers out of range.

    >>> seed = torch.Generator().manual_seed(0)
    >>> found = evaluate_samples(torch.randn(80, 2, generator=seed), torch.full((40, 2), 9.0), lambda x: x)
    >>> found.fake["precision"].value, found.fake["frechet"].value > 50 > found.floor["frechet"].value
    (0.0, True)
    """
    count, least = min(len(real) // 2, len(fake)), max(k_recall, k_coverage, 2) + 1
    if count < least:
        raise ValueError(
            f"evaluate_samples needs {2 * least} real and {least} generated samples for k_recall={k_recall} and "
            f"k_coverage={k_coverage}; got {len(real)} and {len(fake)}"
        )
    if not 0 < level < 1 or num_replicates < 2 or batch_size < 1:
        raise ValueError(
            "evaluate_samples needs a level in (0, 1), num_replicates >= 2 and batch_size >= 1; got "
            f"{level}, {num_replicates} and {batch_size}"
        )
    chosen = torch.randperm(len(real), generator=generator).to(real.device)
    sets = [real[chosen[:count]], real[chosen[count : 2 * count]]]
    sets.append(fake[torch.randperm(len(fake), generator=generator)[:count].to(fake.device)])  # eq. (1)
    embed, space, modules = features, "", [part for part in (features, classify) if isinstance(part, nn.Module)]
    if isinstance(features, FeatureNet):
        embed, space = features.features, features.fingerprint
        classify = features.classify if classify is None else classify
    with evaluation_mode(*modules):
        a, b, f = (_mapped(embed, x, batch_size) for x in sets)
        labels = None if classify is None else [_mapped(classify, x, batch_size) for x in sets]
    settings = (k_recall, k_coverage, level, num_replicates, generator)
    return SampleEvaluation(
        count,
        _measures(a, f, *settings),  # eq. (2)
        _measures(a, b, *settings),
        None if labels is None else _classes(labels[0], labels[2]),
        None if labels is None else _classes(labels[0], labels[1]),
        space,
    )


def _mapped(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    outputs = []
    for part in x.split(batch_size):
        outputs.append(function(part))
        if not outputs[-1].ndim or len(outputs[-1]) != len(part):
            raise ValueError(
                f"features and classify must give one row for each sample; for {len(part)} samples they gave "
                f"{tuple(outputs[-1].shape)}"
            )
    return torch.cat(outputs)


def _measures(
    a: Tensor,
    b: Tensor,
    k_recall: int,
    k_coverage: int,
    level: float,
    num_replicates: int,
    generator: torch.Generator | None,
) -> dict[str, Interval]:
    found = _frechet(a, b, level, generator)
    kernel = kernel_estimate(a, b)
    found["kernel"] = _around(kernel.value, kernel.standard_error, NormalDist().inv_cdf((1 + level) / 2))
    shares, balls = precision_recall(a, b, k_recall), density_coverage(a, b, k_coverage)
    means = {
        "precision": (shares.precision, shares.fake_inside),
        "recall": (shares.recall, shares.real_inside),
        "density": (balls.density, balls.num_balls / k_coverage),
        "coverage": (balls.coverage, balls.covered),
    }
    for name, (value, items) in means.items():
        spread = bootstrap_interval(items.double().cpu().log(), 0, level, num_replicates, generator)
        found[name] = Interval(value.item(), spread.low.exp().item(), spread.high.exp().item())
    return found


def _frechet(a: Tensor, b: Tensor, level: float, generator: torch.Generator | None) -> dict[str, Interval]:
    groups = min(GROUPS, len(a))
    if len(a) - -(-len(a) // groups) < a.shape[-1] + 2:
        return {"frechet": Interval(frechet_distance(a, b).item())}
    estimate = frechet_estimate(a, b, groups, generator)
    quantile = student_t_quantile((1 + level) / 2, groups - 1)
    pairs = {"frechet": estimate.value, "frechet_limit": estimate.limit}
    return {name: _around(value, estimate.standard_error, quantile) for name, value in pairs.items()}


def _around(value: Tensor, error: Tensor, quantile: float) -> Interval:
    return Interval(value.item(), (value - quantile * error).item(), (value + quantile * error).item())


def _classes(reference: Tensor, labels: Tensor) -> ModeCoverage:
    """The coverage of the reference's classes: a label is a place on a line, a class the place of its number."""
    classes, counts = reference.unique(return_counts=True)
    return mode_coverage(labels[:, None].double(), classes[:, None].double(), 0.5, counts.double())
