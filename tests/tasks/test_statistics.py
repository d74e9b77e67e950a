"""The ablation's interval: against scalar loops, by hand, its guards, and simulated ablations whose truth is known.

The simulation shares nothing with the interval's model: sentences with latent difficulty and a random number of
entities, seeds with latent quality, binomial hits and Poisson false alarms, and the population's F1 by integration.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from danlu.tasks.statistics import Difference, holm, metric, paired_difference, verdicts


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def random_counts(seeds: int, examples: int, rng: np.random.Generator, gold: np.ndarray | None = None) -> np.ndarray:
    gold = rng.poisson(2.0, examples) if gold is None else gold
    correct = rng.binomial(np.broadcast_to(gold, (seeds, examples)), 0.8)
    predicted = correct + rng.poisson(0.4, (seeds, examples))
    return np.stack([correct, predicted, np.broadcast_to(gold, (seeds, examples))], -1)


def by_loops(baseline: np.ndarray, arm: np.ndarray) -> tuple[float, float, float]:
    """Mean, low and high of eqs. (1)-(6), with Python floats, sums written out."""
    seeds, examples = len(baseline), len(baseline[0])

    def influence(counts: list) -> list[float]:
        size = [p + g for _, p, g in counts]
        score = 2 * sum(c for c, _, _ in counts) / sum(size)
        return [score + (2 * c - score * n) / (sum(size) / examples) for (c, _, _), n in zip(counts, size, strict=True)]

    rows = [
        [b - a for a, b in zip(influence(x), influence(y), strict=True)]
        for x, y in zip(baseline.tolist(), arm.tolist(), strict=True)
    ]
    mean = sum(map(sum, rows)) / (seeds * examples)
    a = [sum(row) / examples - mean for row in rows]
    b = [sum(row[e] for row in rows) / seeds - mean for e in range(examples)]
    rest = sum((rows[s][e] - mean - a[s] - b[e]) ** 2 for s in range(seeds) for e in range(examples))
    seed_part = sum(v * v for v in a) / (seeds - 1) / seeds
    example_part = sum(v * v for v in b) / (examples - 1) / examples
    example_part -= rest / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    example_part = max(example_part, 0.0)
    kurtosis = examples * sum(v**4 for v in b) / sum(v * v for v in b) ** 2
    example_df = min(examples - 1, 2 * examples / (kurtosis - 1))
    variance = seed_part + example_part
    share = seed_part / variance
    df = 1 / ((1 - (1 - share * share) ** 3) / (seeds - 1) + example_part / variance / example_df)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    return mean, mean - half, mean + half


@pytest.mark.parametrize("effect", [0.0, 1.0])  # without and with a part of its own for every example
def test_equals_the_equations_written_out(effect):
    rng = np.random.default_rng(0)
    gold = rng.poisson(2.0, 40)
    baseline, arm = random_counts(4, 40, rng, gold), random_counts(4, 40, rng, gold)
    if effect:
        arm[:, :12, 0] = arm[:, :12, 1] = gold[:12]  # the arm solves the first twelve examples whatever the seed
    d = paired_difference(baseline, arm)
    assert (d.mean, d.low, d.high) == pytest.approx(by_loops(baseline, arm), rel=1e-9)
    assert (d.seeds, d.examples) == (4, 40)


def test_metric_is_f1_and_accuracy():
    assert metric([[2, 4, 3], [0, 1, 0], [1, 1, 2]]) == pytest.approx(2 * 3 / (6 + 5))
    assert metric([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]) == 0.75  # predicted = gold = 1: accuracy
    assert metric([[0, 0, 0], [0, 0, 0]]) == 0.0  # nothing to find, nothing found
    assert metric(np.ones((2, 5, 4, 3))).shape == (2, 5)


def test_mean_is_the_mean_of_the_metric_differences(rng):
    gold = rng.poisson(2.0, 30)
    baseline, arm = random_counts(5, 30, rng, gold), random_counts(5, 30, rng, gold)
    plain = float((metric(arm) - metric(baseline)).mean())
    assert paired_difference(baseline, arm).mean == pytest.approx(plain, rel=1e-12)


def test_only_seeds_differ_is_students_t():
    """Balanced answers that differ by seed alone: rows shifted between seeds leave no part for the examples."""
    hits = [40, 44, 45, 51]  # of 60 examples, spread so that no example is easier than another over the seeds
    rng = np.random.default_rng(0)
    baseline = np.ones((4, 60, 3), dtype=int)
    arm = baseline.copy()
    for s, n in enumerate(hits):
        arm[s, rng.permutation(60)[n:], 0] = 0
    d = paired_difference(baseline, arm)
    scores = np.array(hits) / 60 - 1
    low, high = stats.t.interval(0.95, 3, scores.mean(), scores.std(ddof=1) / 2)
    assert d.df == pytest.approx(3, rel=0.5)
    assert (d.low, d.high) == pytest.approx((low, high), rel=0.25)


def test_only_examples_differ_is_the_paired_t():
    """Every seed answers alike: the interval is the one of the examples, with as many degrees as they carry."""
    rng = np.random.default_rng(1)
    first, second = rng.binomial(1, 0.6, 400), rng.binomial(1, 0.7, 400)
    baseline, arm = (np.stack([np.tile(x, (5, 1)), np.ones((5, 400)), np.ones((5, 400))], -1) for x in (first, second))
    d = paired_difference(baseline, arm)
    low, high = stats.ttest_rel(second, first).confidence_interval()
    assert (d.low, d.high) == pytest.approx((low, high), rel=0.02)
    assert d.p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=0.1)


def test_swapping_the_arms_mirrors_the_interval_and_relabelling_changes_nothing(rng):
    gold = rng.poisson(2.0, 30)
    baseline, arm = random_counts(4, 30, rng, gold), random_counts(4, 30, rng, gold)
    d, back = paired_difference(baseline, arm), paired_difference(arm, baseline)
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-d.mean, -d.high, -d.low, d.p), rel=1e-9)
    order, seeds = rng.permutation(30), rng.permutation(4)
    same = paired_difference(baseline[seeds][:, order], arm[seeds][:, order])
    assert (same.low, same.high, same.p) == pytest.approx((d.low, d.high, d.p), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_interval_and_p_agree(confidence):
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(60):
        gold = rng.poisson(2.0, 60)
        d = paired_difference(random_counts(4, 60, rng, gold), random_counts(4, 60, rng, gold), confidence)
        assert (d.low <= 0 <= d.high) == (d.p >= 1 - confidence)
        inside += d.low <= 0 <= d.high
    assert inside > 0


def test_equal_arms_are_no_evidence(rng):
    counts = random_counts(5, 20, rng)
    d = paired_difference(counts, counts)
    assert (d.mean, d.p) == (0.0, 1.0)
    assert -0.1 < d.low < 0 < d.high < 0.1  # not finer than the counts, but no more than a few of them
    assert verdicts([d])[0].verdict == "no evidence"


def test_a_handful_of_lucky_examples_is_no_evidence():
    """Three seeds that each win one more example of fifty have spread zero; that is no proof."""
    baseline = np.ones((3, 50, 3), dtype=int)
    baseline[:, :10, 0] = 0
    arm = baseline.copy()
    for s in range(3):
        arm[s, s, 0] = 1
    d = paired_difference(baseline, arm)
    assert d.mean == pytest.approx(0.02)
    assert d.p >= 0.25 and d.low <= 0 <= d.high  # three signs: 2^(1-3)


def test_a_sure_gain_is_found():
    rng = np.random.default_rng(2)
    baseline = np.ones((3, 200, 3), dtype=int)
    arm = baseline.copy()
    for s in range(3):
        baseline[s, rng.permutation(200)[: 60 + s], 0] = 0
        arm[s, rng.permutation(200)[: 20 + s], 0] = 0
    d = paired_difference(baseline, arm)
    assert verdicts([d])[0].verdict == "helps" and d.low > 0.1
    assert verdicts([paired_difference(arm, baseline)])[0].verdict == "hurts"


@pytest.mark.parametrize(("seeds", "examples"), [(1, 30), (5, 1), (1, 1)])
def test_one_seed_or_one_example_knows_no_spread(rng, seeds, examples):
    gold = np.full(examples, 2)
    d = paired_difference(random_counts(seeds, examples, rng, gold), random_counts(seeds, examples, rng, gold))
    assert (d.low, d.high, d.p) == (-1.0, 1.0, 1.0)


def test_examples_without_gold_and_sets_without_any(rng):
    gold = np.array([0, 0, 0, 3, 0, 2, 1, 0])
    d = paired_difference(random_counts(3, 8, rng, gold), random_counts(3, 8, rng, gold))
    assert -1 <= d.low <= d.mean <= d.high <= 1 and math.isfinite(d.p)
    nothing = np.zeros((3, 8, 3))
    assert paired_difference(nothing, nothing) == Difference(0.0, -1.0, 1.0, 1.0, 0.0, 3, 8)
    alarms = nothing.copy()
    alarms[..., 1] = 1
    assert paired_difference(nothing, alarms).mean == 0.0  # F1 is 0 with and without the false alarms


def test_interval_stays_within_what_is_possible():
    baseline = np.ones((3, 12, 3), dtype=int)
    arm = baseline.copy()
    baseline[0, :, 0] = 0
    arm[1:, :, 0] = 0
    d = paired_difference(baseline, arm)
    assert (d.low, d.high) == (-1.0, 1.0)


def test_holm_against_its_definition():
    p = [0.01, 0.04, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == [] and holm([0.7]) == [0.7]
    rng = np.random.default_rng(0)
    for _ in range(50):  # rejected at every level exactly when Holm's sequence of thresholds rejects
        p = rng.random(5) ** 2
        corrected = holm(p.tolist())
        for level in (0.01, 0.05, 0.2):
            order, rejected = np.argsort(p), set()
            for rank, index in enumerate(order):
                if p[index] >= level / (5 - rank):
                    break
                rejected.add(int(index))
            assert {i for i, c in enumerate(corrected) if c < level} == rejected


def test_verdicts():
    def one(mean: float, p: float, seeds: int = 5) -> Difference:
        return Difference(mean, mean - 0.01, mean + 0.01, p, 4.0, seeds, 100)

    told = verdicts([one(0.02, 0.001), one(-0.02, 0.01), one(0.02, 0.04)])
    assert [v.verdict for v in told] == ["helps", "hurts", "helps"]
    assert [v.p_holm for v in told] == pytest.approx([0.003, 0.02, 0.04])
    told = verdicts([one(0.02, 0.02), one(0.02, 0.03), one(0.0, 0.9)])
    assert [v.verdict for v in told] == ["no evidence"] * 3  # 0.02 times 3
    assert [v.verdict for v in verdicts([one(0.5, 1e-9, seeds=2)])] == ["too few seeds"]
    assert verdicts([one(0.02, 0.03)], level=0.01)[0].verdict == "no evidence"


def test_messages():
    good = np.ones((3, 4, 3))
    with pytest.raises(ValueError, match=r"one shape.*\(3, 4, 3\) and \(2, 4, 3\).*same seeds"):
        paired_difference(good, good[:2])
    other = good.copy()
    other[0, 0, 2] = 5
    with pytest.raises(ValueError, match="gold counts differ; evaluate both on one file"):
        paired_difference(good, other)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        paired_difference(good, good, confidence=95)
    with pytest.raises(ValueError, match=r"got \(4, 2\)"):
        metric(np.ones((4, 2)))
    with pytest.raises(ValueError, match="finite and >= 0"):
        metric(-good)
    with pytest.raises(ValueError, match="unequal length"):
        metric([[[1, 1, 1]], [[1, 1, 1], [1, 1, 1]]])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \[1.5\]"):
        holm([1.5])
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 5"):
        verdicts([], level=5)


# ---------------------------------------------------------------- simulated ablations

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@dataclass(frozen=True)
class World:
    """How trials come about; standard deviations are in logits of "this entity is found"."""

    seed_sd: float  # quality of a trained model around its arm's
    effect_sd: float = 0.0  # what the arm does to an example, the same with every seed
    interaction_sd: float = 0.3  # what a seed does to an example
    shift: float = 0.15  # what the arm does to all examples
    examples: int = 300
    difficulty_sd: float = 1.0
    base: float = 2.0
    rare: float = 0.0  # share of the examples that the arm changes by `rare_shift`
    rare_shift: float = 0.0
    accuracy: bool = False  # one label an example instead of entities
    seeds_law: str = "normal"
    gold_law: str = "geometric"

    def golds(self, rng: np.random.Generator, n: int) -> np.ndarray:
        if self.accuracy:
            return np.ones(n, dtype=np.int64)
        if self.gold_law == "lognormal":
            return rng.poisson(np.minimum(np.exp(rng.normal(0, 1.2, n)), 40))
        return rng.negative_binomial(1.0, 1 / 2.7, n)

    def seed_noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        if self.seeds_law == "exponential":  # a tail of bad runs
            z = 1 - rng.exponential(size=n)
        elif self.seeds_law == "t4":
            z = rng.standard_t(4, n) / math.sqrt(2)
        elif self.seeds_law == "collapse":  # every tenth run ends far below
            z = np.where(rng.random(n) < 0.1, -3.0, 1 / 3) + 0.3 * rng.standard_normal(n)
        else:
            z = rng.standard_normal(n)
        return self.seed_sd * z

    def draw(self, rng: np.random.Generator, seeds: int, arms: int, placebo: bool) -> list[np.ndarray]:
        """Counts (seeds, examples, 3) of the baseline and the arms."""
        gold, difficulty = self.golds(rng, self.examples), self.difficulty_sd * rng.standard_normal(self.examples)
        out = []
        for k in range(arms + 1):
            logit = self.base + difficulty + self.seed_noise(rng, seeds)[:, None]
            if k and not placebo:
                logit = logit + self.shift + self.effect_sd * rng.standard_normal(self.examples)
                logit = logit + self.rare_shift * (rng.random(self.examples) < self.rare)
            found = sigmoid(logit + self.interaction_sd * rng.standard_normal(logit.shape))
            correct = rng.binomial(np.broadcast_to(gold, found.shape), found)
            predicted = np.ones_like(correct) if self.accuracy else correct + rng.poisson(0.3 * (1 - found))
            out.append(np.stack([correct, predicted, np.broadcast_to(gold, found.shape)], -1))
        return out

    @functools.cache  # noqa: B019 - a handful of worlds
    def truth(self) -> float:
        """Mean over fresh seeds of the difference of the population's scores, by quadrature and 200,000 seeds."""
        rng = np.random.default_rng(99)
        gold = 1.0 if self.accuracy else float(self.golds(rng, 1_000_000).mean())
        grid = np.linspace(self.base - 8, self.base + 8, 3001)

        def population(quality: np.ndarray, effect_sd: float, rare: float) -> np.ndarray:
            sd = math.sqrt(self.difficulty_sd**2 + self.interaction_sd**2 + effect_sd**2)
            plain, moved = (
                (sigmoid(quality[:, None] + s + sd * NODES) * WEIGHTS).sum(1) for s in (0.0, self.rare_shift)
            )
            found = (1 - rare) * plain + rare * moved
            return found if self.accuracy else 2 * gold * found / (gold * found + 0.3 * (1 - found) + gold)

        quality = self.base + self.seed_noise(rng, 200_000)
        arm = np.interp(quality, grid, population(grid + self.shift, self.effect_sd, self.rare))
        return float((arm - np.interp(quality, grid, population(grid, 0.0, 0.0))).mean())


REGIMES = {
    "seeds dominate": World(seed_sd=0.5, interaction_sd=0.0),
    "examples dominate": World(seed_sd=0.02, effect_sd=2.5, interaction_sd=0.0, difficulty_sd=3.0, shift=0.4),
    "balanced": World(seed_sd=0.12, effect_sd=1.2),
    "interaction": World(seed_sd=0.03, interaction_sd=3.0),
    "no seed effect": World(seed_sd=0.0, interaction_sd=1.0, shift=0.1),
    "heavy tail": World(
        seed_sd=0.06, rare=0.02, rare_shift=4.0, shift=0.0, base=1.0, examples=400, gold_law="lognormal"
    ),
    "rare gains": World(
        seed_sd=0.01, rare=0.01, rare_shift=6.0, shift=0.0, interaction_sd=0.0, difficulty_sd=3.0, examples=400,
        gold_law="lognormal",
    ),
    "accuracy": World(seed_sd=0.15, effect_sd=0.8, accuracy=True),
    "60 examples": World(seed_sd=0.15, effect_sd=0.8, examples=60),
    "exponential seeds": World(seed_sd=0.3, seeds_law="exponential"),
    "t4 seeds": World(seed_sd=0.3, seeds_law="t4"),
}  # fmt: skip


def stream(world: World, seeds: int, use: int) -> np.random.Generator:
    """Independent random numbers for every regime and number of seeds."""
    return np.random.default_rng([use, seeds, list(REGIMES.values()).index(world)])


def coverage(world: World, seeds: int, repetitions: int) -> float:
    rng, truth, hits = stream(world, seeds, 0), world.truth(), 0
    for _ in range(repetitions):
        d = paired_difference(*world.draw(rng, seeds, 1, placebo=False))
        hits += d.low <= truth <= d.high
    return hits / repetitions


def false_verdicts(world: World, seeds: int, repetitions: int) -> tuple[float, float]:
    """Share of placebo arms with a verdict: one arm compared alone, and any of three arms compared together."""
    rng, alone, any_of_three = stream(world, seeds, 1), 0, 0
    for _ in range(repetitions):
        baseline, *arms = world.draw(rng, seeds, 3, placebo=True)
        differences = [paired_difference(baseline, arm) for arm in arms]
        alone += verdicts(differences[:1])[0].verdict != "no evidence"
        any_of_three += any(v.verdict != "no evidence" for v in verdicts(differences))
    return alone / repetitions, any_of_three / repetitions


@pytest.mark.parametrize("name", ["seeds dominate", "examples dominate", "balanced", "interaction"])
def test_coverage_in_a_small_simulation(name):
    assert 0.92 <= coverage(REGIMES[name], 5, 500) <= 0.985  # 3 standard errors around 95.5 %


def test_placebo_in_a_small_simulation():
    alone, any_of_three = false_verdicts(REGIMES["60 examples"], 3, 300)
    assert alone <= 0.09 and any_of_three <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", REGIMES)
def test_coverage_of_2000_ablations(name, seeds):
    measured = coverage(REGIMES[name], seeds, 2000)
    print(f"{name}, {seeds} seeds: {measured:.3f}")
    assert 0.93 <= measured <= (0.98 if REGIMES[name].seeds_law != "normal" else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", ["seeds dominate", "balanced", "interaction", "no seed effect", "accuracy"])
def test_placebo_in_2000_ablations(name, seeds):
    alone, any_of_three = false_verdicts(REGIMES[name], seeds, 2000)
    print(f"{name}, {seeds} seeds: alone {alone:.3f}, any of three {any_of_three:.3f}")
    assert alone <= 0.06 and any_of_three <= 0.06
