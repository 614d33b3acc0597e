"""Blocks, intervals, tests. Oracles: hand arithmetic, `facts.metrics`, sums over many drawn processes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from climafuse.errors import UsageError
from climafuse.evaluation.correlation import Correlation, Decay, SamplePoints, Scales
from climafuse.evaluation.statistics import (
    Spread,
    choose_blocks,
    difference,
    fact_counts,
    fact_f1,
    interval,
    make_blocks,
    mean,
    precision,
    recall,
    values,
)
from climafuse.facts import Fact, metrics, statistic
from tests.evaluation.scores import anywhere, series

ONE = Scales(math.inf, math.inf)


def test_figures_of_counts_are_those_of_facts():
    warm, calm = Fact("mean", "t2m", 280.0), Fact("mean", "msl", 1013.0)
    answers = [([warm], [warm]), ([], [calm]), ([replace(warm, value=250.0)], [warm]), ([calm, warm], [warm])]
    statistics = [statistic(stated, real) for stated, real in answers]
    whole = metrics(statistics[0] + statistics[1] + statistics[2] + statistics[3])
    sums = fact_counts(statistics).sum(axis=0)
    assert sums.tolist() == [2, 4, 2, 4]
    assert (precision(sums), recall(sums), fact_f1(sums)) == (whole.precision, whole.recall, whole.f1)
    # Unequal: P = 3/4, R = 2/6; F1 = 2 · 1/4 / (13/12) = 6/13.
    assert fact_f1(np.array([3.0, 4, 2, 6])) == pytest.approx(6 / 13)
    assert fact_f1(np.array([[0.0, 4, 0, 6], [0, 0, 0, 6]])).tolist() == [0, 0]
    assert np.isnan(fact_f1(np.zeros(4)))


def test_the_mean_leaves_out_what_has_no_value():
    assert mean(values([1.0, np.nan, 3.0]).sum(axis=0)) == 2
    assert np.isnan(mean(np.zeros(2)))


def test_blocks_of_time():
    blocks = make_blocks(series(10, step=6.0), Scales(20.0, math.inf))  # 60 h: three periods of 20 h
    assert blocks.number.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert blocks.effective == pytest.approx(100 / (16 + 9 + 9))
    assert (blocks.num_blocks, blocks.effective_in_time, blocks.effective_in_space) == (
        3,
        blocks.effective,
        1,
    )
    assert make_blocks(series(10), Scales(0.0, math.inf)).number.tolist() == list(range(10))
    assert make_blocks(series(10), ONE).num_blocks == 1


def test_cells_are_of_about_the_length_asked_for():
    points = anywhere(1500)
    blocks = make_blocks(points, Scales(math.inf, 3000.0))
    # The sphere holds 510e6 / 9e6 = 56.7 such squares.
    assert 50 < blocks.num_blocks < 64
    cells = [np.flatnonzero(blocks.number == number) for number in range(blocks.num_blocks)]
    across = [points.distances[np.ix_(cell, cell)].max() for cell in cells]
    assert max(across) < 2 * 3000
    assert np.median(across) == pytest.approx(3000 * math.sqrt(2), rel=0.2)


def test_blocks_of_time_and_space():
    points = SamplePoints([0, 0, 0, 9, 9, 9], [50, 50, -50, 50, 50, -50], [10, 10, 10, 10, 10, 10])
    blocks = make_blocks(points, Scales(0.0, 9000.0))
    assert blocks.number.tolist() == [1, 1, 0, 3, 3, 2]
    assert (blocks.effective_in_time, blocks.effective_in_space) == (2, pytest.approx(36 / 20))


@pytest.mark.parametrize("size", [Scales(0.0, 3000.0), Scales(25.0, math.inf), Scales(50.0, 5000.0)])
def test_the_variance_of_draws_is_too_small_by_the_factor_given(size: Scales):
    # Oracle: many Gaussian processes of the very correlation.
    points = anywhere(120, times=12)
    correlation = Correlation(points, [Decay(20.0, 1500.0)], np.array([0.7]))
    blocks = make_blocks(points, size)
    spread = Spread.of(correlation, blocks)
    noise = np.random.default_rng(1).standard_normal((120, 20_000))
    scores = np.linalg.cholesky(correlation.matrix) @ noise
    sums = blocks.sums(scores - scores.mean(axis=0))
    variances = np.square(sums).sum(axis=0)  # of a draw of blocks, given the scores
    assert np.var(scores.sum(axis=0)) / variances.mean() == pytest.approx(spread.widening, rel=0.03)
    assert 2 * variances.mean() ** 2 / variances.var() == pytest.approx(spread.degrees, rel=0.05)
    assert spread.widening > 1.2


def test_blocks_are_twice_as_long_as_the_correlation():
    points = series(200, step=6.0)
    alone, faint, short, long = (
        choose_blocks(Correlation(points, [Decay(hours, math.inf)], np.array([share])))
        for hours, share in ((30.0, 0.0), (30.0, 0.09), (12.0, 0.11), (46.0, 0.99))
    )
    assert alone.num_blocks == faint.num_blocks == 200
    assert (short.size.hours, long.size.hours) == pytest.approx((24, 92))
    assert (short.num_blocks, long.num_blocks) == (50, 13)  # of 1200 h
    floored = choose_blocks(Correlation(points, [Decay(12.0, math.inf)], np.array([0.5])), Scales(30.0, 0.0))
    assert floored.size.hours == 60
    assert choose_blocks(Correlation(series(50), [Decay(100.0, math.inf)], np.array([0.99]))).num_blocks == 1


@pytest.mark.parametrize("floor", [Scales(), Scales(24.0, 1594.0)])
@pytest.mark.parametrize("times", [3, 80])
@pytest.mark.sampled(2)
def test_no_block_is_shorter_than_what_is_measured(times: int, floor: Scales):
    """Oracle: the distance between samples of a cell and of a period, which shows how long these really are."""
    points = anywhere(240, times=times)
    noise = np.random.default_rng(0).standard_normal((240, 20))
    root = np.linalg.cholesky(points.correlated(Decay(24.0, 1200.0)))
    correlated = 0
    for scores in (root @ noise).T:
        found = interval(points, values(scores), mean, floor=floor, repetitions=10)
        blocks = make_blocks(points, found.size)
        assert found.claimed
        correlated += found.share > 0.1
        measured = found.scales if found.share > 0.1 else Scales()
        for number, shortest, extent in (
            (blocks.period, max(measured.hours, floor.hours), np.ptp(points.hours) + points.step),
            (blocks.cell, max(measured.kilometers, floor.kilometers), math.sqrt(4 * math.pi) * 6371),
        ):
            parts = len(np.unique(number))
            # Of even parts: of a line, and of a sphere (by the area of the mean cell).
            length = extent / (parts if number is blocks.period else math.sqrt(parts))
            assert parts == 1 or length >= shortest
    assert correlated > 5  # the others tell of none


def test_few_periods_times_few_cells_are_no_blocks():
    # Eight times at each of four places; all of a time go together, and all of a place.
    hours, place = (axis.ravel() for axis in np.meshgrid(100.0 * np.arange(8), np.arange(4), indexing="ij"))
    latitude, longitude = np.array([60.0, 10.0, -10.0, -60.0])[place], 90.0 * place
    found = interval(
        SamplePoints(hours, latitude, longitude), values(np.random.default_rng(0).standard_normal(32)), mean
    )
    assert (found.claimed, found.effective_blocks) == (False, 8)
    # One axis that has ten will do, the other being left whole; of two that have, both are divided.
    for times, places, expected in ((12, 4, 12), (8, 16, 16), (12, 16, 192)):
        hours, place = (
            axis.ravel() for axis in np.meshgrid(100.0 * np.arange(times), np.arange(places), indexing="ij")
        )
        points = SamplePoints(hours, -75 + 10 * place, 137.0 * place)
        assert choose_blocks(Correlation(points, [], np.array([]))).effective == expected
    # What is alike at all times leaves time whole.
    assert choose_blocks(Correlation(points, [Decay(math.inf, 1.0)], np.array([0.5]))).effective_in_time == 1


def test_independent_samples_give_the_textbook_interval():
    points, numbers = series(400), np.random.default_rng(0).standard_normal(400)
    found = interval(points, values(numbers), mean)
    error = numbers.std(ddof=1) / 20
    assert found.claimed
    assert found.value == pytest.approx(numbers.mean())
    assert found.error == pytest.approx(error, rel=0.2)
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * found.error, rel=0.05)
    assert found == interval(points, values(numbers), mean)
    assert found.p is None


def test_what_blocks_share_widens_the_interval():
    points, random = series(240), np.random.default_rng(1)
    correlation = Correlation(points, [Decay(3.0, math.inf)], np.array([0.9]))
    scores = np.linalg.cholesky(correlation.matrix) @ random.standard_normal(240)
    found = interval(points, values(scores), mean)
    measured = points.correlation(scores)
    blocks = choose_blocks(measured)
    spread = Spread.of(measured, blocks)
    assert spread.widening > 1.3
    sums = blocks.sums((scores - scores.mean())[:, None])[:, 0]
    error = math.sqrt(spread.widening * np.square(sums).sum()) / 240
    assert found.error == pytest.approx(error, rel=0.05)
    quantile = stats.t.ppf(0.975, spread.degrees)
    assert (found.high - found.low) / 2 == pytest.approx(quantile * error, rel=0.15)
    narrow = interval(points, values(scores), mean, level=0.5)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(stats.t.ppf(0.75, spread.degrees) * error, rel=0.1)


def test_a_difference_is_paired():
    points, random = anywhere(200), np.random.default_rng(0)
    hard = 10 * random.standard_normal(200)
    first, second = hard + random.standard_normal(200), hard + 0.4 + random.standard_normal(200)
    found = difference(points, values(first), values(second), mean)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.high < 0
    assert found.p < 0.01
    assert found.error < 0.2  # the scores' own is 10 / √200 = 0.7
    # The other way round everything is mirrored.
    back = difference(points, values(second), values(first), mean)
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p))


@pytest.mark.parametrize("seed", range(20))
def test_p_and_interval_say_the_same(seed: int):
    random = np.random.default_rng(seed)
    found = difference(
        anywhere(40), values(random.standard_normal(40)), values(random.standard_normal(40) + 0.5), mean
    )
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_few_blocks_claim_nothing():
    found = interval(series(9), values(np.arange(9.0)), mean)
    assert (found.low, found.high, found.p, found.claimed) == (None, None, None, False)
    assert found.value == 4
    assert "effective blocks" in found.why
    assert interval(anywhere(96), values(anywhere(96).latitude), mean).claimed is False  # one long slope
    noise = values(np.random.default_rng(0).standard_normal(96))
    assert interval(anywhere(96), noise, mean).claimed
    assert not interval(anywhere(96), noise, mean, floor=Scales(0.0, 5000.0)).claimed
    slope = anywhere(96).latitude + 20 * np.random.default_rng(0).standard_normal(96)
    assert not interval(anywhere(96), values(slope), mean, floor=Scales(0.0, 1600.0)).claimed


def test_figures_without_spread_or_meaning_claim_nothing():
    points = anywhere(30)
    right = np.tile([2.0, 2, 2, 2], (30, 1))
    found = interval(points, right, fact_f1)
    assert (found.value, found.why) == (1, "all samples say the same")
    assert difference(points, right, right, fact_f1).why == "all samples say the same"
    assert "not defined" in interval(points, np.zeros((30, 4)), fact_f1).why
    rare = np.zeros((30, 4))
    rare[3] = 1
    assert not interval(points, rare, fact_f1).claimed


def test_samples_that_add_nothing_do_not_count():
    points, numbers = anywhere(80), np.random.default_rng(0).standard_normal(80)
    numbers[::2] = np.nan
    found = interval(points, values(numbers), mean)
    assert found == interval(points.subset(np.arange(1, 80, 2)), values(numbers[1::2]), mean)


def test_contributions_of_another_number_of_samples():
    with pytest.raises(UsageError, match=r"\[30, K\]"):
        interval(anywhere(30), np.zeros((29, 2)), mean)
    with pytest.raises(UsageError, match="NaN"):
        interval(anywhere(30), np.full((30, 2), np.nan), mean)
