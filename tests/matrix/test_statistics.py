"""Settings x promises: how often intervals hold, how often seeds are told apart, and how often models are.

Oracles: worlds whose truth is known. A Gaussian process over time and the sphere makes samples hard or easy; a model
answers two to six questions a window, right with a probability that follows it and a process of the model's own. The
correlation is measured from the scores, never given.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import special

from climafuse.evaluation.correlation import Array, SamplePoints, Scales
from climafuse.evaluation.statistics import NO_FLOOR, Interval, difference, fact_f1, interval, mean, values
from tests.conftest import Cell
from tests.evaluation.scores import anywhere, series

DESIGNS = 5  # draws of places
# Of a model: probit of being right, what it varies by, in common with others and of its own; share answered.
SKILL, COMMON, OWN, STATED = 1.0, 0.8, 0.6, 0.95
NOISE = 0.5  # of errors, beside what the processes make of them
BETTER = 0.5  # probits
FIELDS = Scales(24.0, 1600.0)  # those of ERA5: `field_scales`
REPETITIONS = 2000  # of draws of blocks


@dataclass(frozen=True)
class Setting:
    """Samples and the lengths over which they are alike."""

    times: int
    samples: int
    scales: Scales
    smooth: bool = False
    floor: Scales = NO_FLOOR

    def points(self, seed: int) -> SamplePoints:
        if math.isinf(self.scales.kilometers):
            return series(self.samples, step=6.0)
        return anywhere(self.samples, times=self.times, step=8.0, seed=seed)

    def root(self, points: SamplePoints) -> Array:
        """[N, N] what makes the process of white noise."""
        covariance = np.exp(-points.lags / self.scales.hours)
        if self.smooth:  # of the chord: squared exponentials of the arc are no covariance on the sphere
            chord = 2 * 6371 * np.sin(points.distances / 2 / 6371)
            covariance = covariance * np.exp(-np.square(chord / self.scales.kilometers))
        else:
            covariance = covariance * np.exp(-points.distances / self.scales.kilometers)
        return np.linalg.cholesky(covariance + 1e-8 * np.eye(len(points)))


SETTINGS = {
    "96 times, one place, independent": Setting(96, 96, Scales(0.1, math.inf)),
    "96 times, one place, 8 h": Setting(96, 96, Scales(8.0, math.inf)),
    "240 times, one place, 18 h": Setting(240, 240, Scales(18.0, math.inf)),
    "one time, 96 places, independent": Setting(1, 96, Scales(24.0, 0.1)),
    "one time, 96 places, 800 km": Setting(1, 96, Scales(24.0, 800.0)),
    "one time, 240 places, 1500 km, smooth": Setting(1, 240, Scales(24.0, 1500.0), smooth=True),
    # As in an evaluation, where the fields are correlated over 1600 km, and scores are not, or less, or as much.
    "3 times, 96 places, independent, fields 1600 km": Setting(3, 96, Scales(0.1, 0.1), floor=FIELDS),
    "one time, 96 places, 800 km, fields 1600 km": Setting(1, 96, Scales(24.0, 800.0), floor=FIELDS),
    "3 times, 96 places, 24 h, 1600 km, fields 1600 km": Setting(3, 96, Scales(24.0, 1600.0), floor=FIELDS),
    "one time, 96 places, 1600 km, fields 1600 km": Setting(1, 96, Scales(24.0, 1600.0), floor=FIELDS),
    "3 times, 96 places, 24 h, 1000 km": Setting(3, 96, Scales(24.0, 1000.0)),
    "12 times, 192 places, 24 h, 1000 km": Setting(12, 192, Scales(24.0, 1000.0)),
    "80 times, 160 places, 24 h, 1000 km": Setting(80, 160, Scales(24.0, 1000.0)),
    "80 times, 320 places, 24 h, 1000 km": Setting(80, 320, Scales(24.0, 1000.0)),
}


QUICK = ("one time, 96 places, independent", "3 times, 96 places, 24 h, 1000 km")


@dataclass
class World:
    """Draws of scores at the same points."""

    points: SamplePoints
    common: Array
    own: list[Array]
    random: np.random.Generator

    def counts(self, draw: int, model: int, better: float = 0.0) -> Array:
        """[N, 4] counts of facts of one model, as of `fact_counts`."""
        state = SKILL + better + COMMON * self.common[:, draw] + OWN * self.own[model][:, draw]
        stated = self.random.binomial(self.questions[draw], STATED)
        right = self.random.binomial(stated, special.ndtr(state))
        return np.stack([right, stated, right, self.questions[draw]], axis=1).astype(np.float64)

    @functools.cached_property
    def questions(self) -> Array:
        return self.random.integers(2, 7, size=self.common.T.shape)

    def errors(self, draw: int, model: int) -> Array:
        """[N, 2] errors with their sign, as of `values`."""
        process = COMMON * self.common[:, draw] + OWN * self.own[model][:, draw]
        return values(process + NOISE * self.random.standard_normal(len(process)))


def true_f1() -> float:
    share = float(special.ndtr(SKILL / math.sqrt(1 + COMMON**2 + OWN**2)))
    return 2 * STATED * share / (STATED + 1)


def true_difference() -> float:
    """Of F1, between a model that is `BETTER` and one that is not."""
    spread = math.sqrt(1 + COMMON**2 + OWN**2)
    shares = special.ndtr((SKILL + BETTER) / spread), special.ndtr(SKILL / spread)
    return float(2 * STATED * (shares[0] - shares[1]) / (STATED + 1))


TRUTH = {
    "F1": true_f1(),
    "error": 0.0,
    "F1 of two seeds": 0.0,
    "error of two seeds": 0.0,
    "F1 of a better model": true_difference(),
}


@functools.lru_cache(maxsize=1)
def inferences(name: str, repetitions: int) -> tuple[dict[str, list[Interval]], float]:
    """All that is inferred in a setting; and how often the mean error is in an interval that takes windows for
    independent.
    """
    setting = SETTINGS[name]
    found: dict[str, list[Interval]] = {key: [] for key in TRUTH}
    naive = 0
    for seed in range(DESIGNS):
        # The same places wherever there are as many, but scores of each setting's own.
        random = np.random.default_rng([list(SETTINGS).index(name), seed])
        points = setting.points(seed)
        root = setting.root(points)
        draws = repetitions // DESIGNS
        common, *own = (root @ random.standard_normal((len(points), draws)) for _ in range(3))
        world = World(points, common, own, random)
        for draw in range(draws):
            first, second, better = (
                world.counts(draw, model, by) for model, by in ((0, 0.0), (1, 0.0), (1, BETTER))
            )
            one, two = (world.errors(draw, model) for model in (0, 1))
            options: Any = {"repetitions": REPETITIONS, "seed": draw, "floor": setting.floor}
            inferred = (
                interval(points, first, fact_f1, **options),
                interval(points, one, mean, **options),
                difference(points, first, second, fact_f1, **options),
                difference(points, one, two, mean, **options),
                difference(points, better, first, fact_f1, **options),
            )
            for key, result in zip(TRUTH, inferred, strict=True):
                found[key].append(result)
            error = 1.96 * one[:, 0].std() / math.sqrt(len(one))
            naive += abs(one[:, 0].mean() - TRUTH["error"]) <= error
    return found, naive / (DESIGNS * draws)


def claimed(results: list[Interval]) -> list[Interval]:
    return [result for result in results if result.claimed]


def share_that_holds(results: list[Interval], truth: float) -> float:
    return sum(result.low <= truth <= result.high for result in results) / len(results)


@pytest.fixture
def repetitions(name: str, thorough: bool) -> int:
    # Intervals of independent samples are a little too wide, near the edge of the band: less is left to chance.
    return (2000 if "independent" in name else 500) if thorough else 50


@pytest.fixture
def band(thorough: bool) -> tuple[float, float]:
    """Of what shall be 95 %; wider where few repetitions are tried: 91 % less two standard deviations of chance."""
    return (0.91, 0.98) if thorough else (0.83, 1.0)


# Few of the settings in the quick suite. All figures of a setting are tested before the next one is drawn.
every_setting = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS],
    scope="module",
)


@every_setting
class TestSetting:
    @pytest.mark.parametrize("figure", ["F1", "error", "F1 of a better model"])
    @pytest.mark.sampled(3)
    def test_intervals_hold(
        self, name: str, figure: str, repetitions: int, band: tuple[float, float], cell: Cell
    ) -> None:
        results = inferences(name, repetitions)[0][figure]
        holds = share_that_holds(claimed(results), TRUTH[figure])
        cell("95 % intervals that hold the truth", name, figure, repetitions, f"{100 * holds:.1f} %")
        assert band[0] <= holds <= band[1]

    def test_the_settings_are_hard(
        self, name: str, repetitions: int, band: tuple[float, float], cell: Cell
    ) -> None:
        naive = inferences(name, repetitions)[1]
        cell(
            "95 % intervals that hold the truth",
            name,
            "error, windows taken for independent",
            repetitions,
            f"{100 * naive:.1f} %",
        )
        assert naive >= band[0] if "independent" in name else naive < 0.95

    @pytest.mark.parametrize("figure", ["F1 of two seeds", "error of two seeds"])
    def test_seeds_of_one_model_are_told_apart_at_the_stated_rate(
        self, name: str, figure: str, repetitions: int, band: tuple[float, float], cell: Cell
    ) -> None:
        results = claimed(inferences(name, repetitions)[0][figure])
        rejected = sum(result.p < 0.05 for result in results) / len(results)
        cell("seeds told apart at p < 0.05", name, figure, repetitions, f"{100 * rejected:.1f} %")
        assert 1 - band[1] <= rejected <= 1 - band[0]

    def test_a_better_model_is_found(self, name: str, repetitions: int, cell: Cell) -> None:
        # Oracle: the normal test of one who knows the standard deviation of the difference.
        results = inferences(name, repetitions)[0]["F1 of a better model"]
        found = sum(result.p < 0.05 for result in claimed(results)) / len(claimed(results))
        best = special.ndtr(
            TRUTH["F1 of a better model"] / np.std([result.value for result in results]) - 1.96
        )
        table = "a better model found at p < 0.05"
        cell(table, name, "found", repetitions, f"{100 * found:.0f} %")
        cell(table, name, "by who knows the error", repetitions, f"{100 * best:.0f} %")
        assert found > best - 0.2

    @pytest.mark.parametrize("figure", TRUTH)
    def test_intervals_are_claimed(self, name: str, figure: str, repetitions: int, cell: Cell) -> None:
        results = inferences(name, repetitions)[0][figure]
        share = len(claimed(results)) / len(results)
        cell("intervals claimed", name, figure, repetitions, f"{100 * share:.0f} %")
        assert share > 0.7
