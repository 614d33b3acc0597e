"""Intervals and tests that hold although samples near in time and space are right or wrong together.

1. How scores go together is measured (`correlation.py`).
2. Samples are put in blocks, periods of time × cells of the sphere of about equal area, twice as long as the measured
   correlation, and as that of the fields where it is given: about as far as either reaches (`Blocks`,
   `choose_blocks`). Time is divided in ten effective periods or not at all, and space in as many cells: eight periods
   × four cells are no thirty blocks where all samples of a period go together, or all of a place.
3. Blocks are drawn with replacement and the statistic is computed of each draw (Künsch 1989; in space Lahiri 2003,
   chapter 12; Nordman & Lahiri 2004).
4. Percentiles of the draws are too narrow for three reasons, each of which is put right (Hesterberg 2015 widens
   percentiles for the first two; Bell & McCaffrey 2002 and Imbens & Kolesár 2016 do the same for standard errors of
   clusters):

   - the mean of few blocks follows them, and blocks border on blocks that they are correlated with: the variance of
     draws is smaller than that of the statistic by the factor that the measured correlation says (`Spread.widening`);
   - the variance of few blocks is uncertain: quantiles of Student's t replace those of the normal distribution, with
     the degrees of freedom that the measured correlation leaves (Satterthwaite).

Where neither time nor space gives ten effective blocks, no interval is claimed. How often these intervals hold is
measured by `scripts/matrix statistics`.

References:
    H. R. Künsch, The jackknife and the bootstrap for general stationary observations, Ann. Statist. 17, 1989.
    S. N. Lahiri, Resampling Methods for Dependent Data, Springer 2003.
    D. J. Nordman, S. N. Lahiri, On optimal spatial subsample size for variance estimation, Ann. Statist. 32, 2004.
    T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69, 2015.
    R. M. Bell, D. F. McCaffrey, Bias reduction in standard errors for linear regression with multi-stage samples,
    Survey Methodology 28, 2002.
    G. W. Imbens, M. Kolesár, Robust standard errors in small samples, Rev. Econ. Stat. 98, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy import special

from climafuse.errors import UsageError
from climafuse.evaluation.correlation import FEWEST, Array, Correlation, SamplePoints, Scales
from climafuse.evaluation.correlation import NO_FLOOR as NO_FLOOR
from climafuse.facts.kinds import EARTH_RADIUS
from climafuse.facts.score import Statistic

REPETITIONS = 10_000
REACH = 2.0  # blocks, in lengths over which a correlation falls to 1/e
NEGLIGIBLE = 0.1  # share of a sample's variance that is in common with others

# Sums over samples [..., K] → the figure [...].
Figure: TypeAlias = Callable[[Array], Array]


def mean(sums: Array) -> Array:
    """Mean of what `values` counted.

    Args:
        sums: [..., 2] sum, number.

    Returns:
        [...]
    """
    return _ratio(sums[..., 0], sums[..., 1])


def precision(sums: Array) -> Array:
    """Share of the facts stated that are right; `sums` [..., 4] as of `fact_counts`."""
    return _ratio(sums[..., 0], sums[..., 1])


def recall(sums: Array) -> Array:
    """Share of the reference's facts that were stated right; `sums` [..., 4] as of `fact_counts`."""
    return _ratio(sums[..., 2], sums[..., 3])


def fact_f1(sums: Array) -> Array:
    """Harmonic mean of precision and recall, as in `facts.metrics`.

    Args:
        sums: [..., 4] as of `fact_counts`.

    Returns:
        [...], 0 where nothing is right and NaN where nothing was stated nor asked.
    """
    right, stated, recalled, referenced = np.moveaxis(sums, -1, 0)
    # 2 P R / (P + R) without the divisions that nothing right or nothing stated would make undefined.
    nothing = np.where(stated + referenced > 0, 0.0, np.nan)
    return np.where(
        right * recalled > 0, _ratio(2 * right * recalled, right * referenced + recalled * stated), nothing
    )


def fact_counts(statistics: Iterable[Statistic]) -> Array:
    """What `fact_f1`, `precision` and `recall` are computed from.

    Args:
        statistics: Of N samples.

    Returns:
        [N, 4] numbers of facts: right, stated, recalled, referenced.
    """
    totals = [statistic.total() for statistic in statistics]
    rows = [(tally.right, tally.stated, tally.recalled, tally.referenced) for tally in totals]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 4)


def values(numbers: Any) -> Array:
    """What `mean` is computed from.

    Args:
        numbers: [N] of each sample, NaN where it has none.

    Returns:
        [N, 2] the number and 1, or twice 0.
    """
    numbers = np.asarray(numbers, dtype=np.float64)
    known = np.isfinite(numbers)
    return np.stack([np.where(known, numbers, 0.0), known], axis=-1)


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) != 0)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Samples in periods of time × cells of the sphere.

    Args:
        period: [N] number of the period.
        cell: [N] number of the cell.
        size: Length of periods and cells; 0 where each time or place is one of its own, infinite where there is one.
    """

    period: Array
    cell: Array
    size: Scales

    @cached_property
    def number(self) -> Array:
        """[N] number of the block, from 0 without gaps."""
        pairs = self.period.astype(np.int64) * (int(self.cell.max()) + 1) + self.cell
        return np.unique(pairs, return_inverse=True)[1].ravel()

    @property
    def num_blocks(self) -> int:
        """Blocks that hold a sample."""
        return int(self.number.max()) + 1

    @property
    def effective(self) -> float:
        """Number of equal blocks that would be worth as much: (Σ n)² / Σ n² over the samples in each."""
        return _effective(self.number)

    @property
    def effective_in_time(self) -> float:
        """The same of periods alone: a test of one day says nothing of other days."""
        return _effective(self.period)

    @property
    def effective_in_space(self) -> float:
        """The same of cells alone."""
        return _effective(self.cell)

    def sums(self, contributions: Array) -> Array:
        """[B, K] of contributions [N, K]."""
        return np.stack(
            [
                np.bincount(self.number, weights=column, minlength=self.num_blocks)
                for column in contributions.T
            ],
            axis=1,
        )


def _effective(number: Array) -> float:
    counts = np.bincount(number).astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def make_blocks(points: SamplePoints, size: Scales) -> Blocks:
    """Blocks of a given size.

    Periods divide the time from the first sample to the last evenly. Cells divide bands of latitude evenly, both as
    nearly as long as asked for.

    Args:
        points: When and where the samples are.
        size: Length of a period and of a cell; 0 for each time or place apart, infinite for all in one.
    """
    return Blocks(_periods(points, size.hours), _cells(points, size.kilometers), size)


def _periods(points: SamplePoints, hours: float) -> Array:
    if hours == 0:
        return np.searchsorted(points.times, points.hours)
    span = float(np.ptp(points.times)) + points.step
    number = max(1, round(span / hours))
    if number == 1:
        return np.zeros(len(points), dtype=np.int64)
    return ((points.hours - points.times[0]) * (number / span)).astype(np.int64).clip(max=number - 1)


def _cells(points: SamplePoints, kilometers: float) -> Array:
    if kilometers == 0:
        return points.place_numbers
    num_bands = max(1, round(math.pi * EARTH_RADIUS / kilometers))
    if num_bands == 1:
        return np.zeros(len(points), dtype=np.int64)
    band = ((points.latitude + 90) / 180 * num_bands).astype(np.int64).clip(0, num_bands - 1)
    middle = np.radians((band + 0.5) / num_bands * 180 - 90)
    # A whole circle of latitude in a part of its length each.
    around = (2 * math.pi * EARTH_RADIUS * np.cos(middle) / kilometers).round().astype(np.int64).clip(1)
    cell = (points.longitude % 360.0 / 360.0 * around).astype(np.int64).clip(max=around - 1)
    return np.unique(band * (int(around.max()) + 1) + cell, return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class Spread:
    """How the variance of draws of blocks relates to that of the statistic, by the correlation between samples.

    Args:
        widening: Variance of the statistic over the expected variance of draws.
        degrees: Degrees of freedom of the variance of draws.
    """

    widening: float
    degrees: float

    @classmethod
    def of(cls, correlation: Correlation, blocks: Blocks) -> Spread:
        """What the correlation says of these blocks.

        With block sums S of unit variance a sample and n samples in each of N, draws have the variance
        Σ (S_b - n_b/N Σ S)². Its expectation and degrees of freedom follow from the covariance of these terms.
        """
        share = np.bincount(blocks.number) / len(blocks.number)
        between = _block_sums(correlation.matrix, blocks)  # [B, B]
        rows, total = between.sum(axis=0), between.sum()
        terms = between - share[:, None] * rows - rows[:, None] * share + share[:, None] * share * total
        expected = float(np.trace(terms))
        return cls(float(total) / expected, expected**2 / float(np.square(terms).sum()))


def _block_sums(matrix: Array, blocks: Blocks) -> Array:
    """[B, B] sums of [N, N] over blocks."""
    order = np.argsort(blocks.number, kind="stable")
    starts = np.searchsorted(blocks.number[order], np.arange(blocks.num_blocks))
    return np.add.reduceat(np.add.reduceat(matrix[np.ix_(order, order)], starts, axis=0), starts, axis=1)


def choose_blocks(correlation: Correlation, floor: Scales = NO_FLOOR) -> Blocks:
    """Blocks about as long as the correlation reaches.

    Args:
        correlation: Between the samples.
        floor: Lengths to assume at least.

    Returns:
        Periods × cells where there are ten effective ones of both, else the more effective of periods and cells.
    """
    points = correlation.points
    measured = correlation.scales if correlation.share >= NEGLIGIBLE else NO_FLOOR
    hours = REACH * max(floor.hours, measured.hours)
    kilometers = REACH * max(floor.kilometers, measured.kilometers)
    periods, cells = (
        make_blocks(points, size) for size in (Scales(hours, math.inf), Scales(math.inf, kilometers))
    )
    if min(periods.effective, cells.effective) >= FEWEST:
        return make_blocks(points, Scales(hours, kilometers))
    return max(periods, cells, key=lambda blocks: blocks.effective)


@dataclass(frozen=True)
class Interval:
    """A figure and how far it can be trusted.

    Args:
        value: The figure.
        low: Lower end of the interval, None where none is claimed.
        high: Upper end, likewise.
        error: Standard error, likewise.
        why: Why no interval is claimed; empty where one is.
        num_blocks: Blocks that hold samples.
        effective_blocks: As many equal ones are worth as much.
        effective_in_time: The same of periods alone.
        effective_in_space: The same of cells alone.
        size: Length of periods and cells.
        scales: Measured length of the correlation.
        share: What a sample has in common with another one nearby, of its variance.
        degrees: Degrees of freedom of the standard error.
        p: Two-sided p-value of zero; None where no interval is claimed.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    why: str
    num_blocks: int
    effective_blocks: float
    effective_in_time: float
    effective_in_space: float
    size: Scales
    scales: Scales
    share: float
    degrees: float
    p: float | None = None

    @property
    def claimed(self) -> bool:
        """Whether there is an interval."""
        return not self.why


def interval(
    points: SamplePoints,
    contributions: Array,
    figure: Figure,
    *,
    floor: Scales = NO_FLOOR,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Interval:
    """A figure with the interval that holds it at the given level, over times and places like those of the samples.

    Args:
        points: When and where the N samples are.
        contributions: [N, K] what each adds to the sums that the figure is computed of; of `fact_counts`, `values`, ….
        figure: Sums [..., K] → figure [...].
        floor: Correlation lengths to assume at least, as of `field_scales`.
        level: Of the interval.
        repetitions: Draws of blocks.
        seed: Of the draws.

    Raises:
        UsageError: Contributions are not finite or not one row a sample.
    """
    return _infer(points, [contributions], figure, floor, level, repetitions, seed)


def difference(
    points: SamplePoints,
    first: Array,
    second: Array,
    figure: Figure,
    *,
    floor: Scales = NO_FLOOR,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Interval:
    """The figure of one condition less that of another on the same samples, with a paired test of no difference.

    The same blocks are drawn for both, so that what makes samples hard for both cancels.

    Args:
        points: When and where the N samples are.
        first: [N, K] contributions under the one condition.
        second: [N, K] under the other.
        figure: Sums [..., K] → figure [...].
        floor: As of `interval`.
        level: Likewise.
        repetitions: Likewise.
        seed: Likewise.

    Returns:
        The difference, with the two-sided ``p``: below 1 - level just where the interval leaves out zero.

    Raises:
        UsageError: Contributions are not finite or not one row a sample.
    """
    return _infer(points, [first, second], figure, floor, level, repetitions, seed)


def _infer(
    points: SamplePoints,
    conditions: list[Array],
    figure: Figure,
    floor: Scales,
    level: float,
    repetitions: int,
    seed: int,
) -> Interval:
    parts = [_checked(points, contributions) for contributions in conditions]
    width = parts[0].shape[1]

    def value_of(sums: Array) -> Array:
        values = [figure(sums[..., k * width : (k + 1) * width]) for k in range(len(parts))]
        return np.asarray(values[0] if len(values) == 1 else values[0] - values[1])

    table = np.concatenate(parts, axis=1)
    counted = np.asarray(table.any(axis=1))
    if not counted.all() and counted.any():  # samples that add nothing say nothing
        points, table = points.subset(counted), table[counted]
    total = table.sum(axis=0)
    value = float(value_of(total))
    influence = value - value_of(total - table)  # of each sample, by leaving it out
    defined = math.isfinite(value) and bool(np.isfinite(influence).all())
    correlation = points.correlation(influence if defined else np.zeros(len(points)), floor)
    blocks = choose_blocks(correlation, floor)
    low = high = error = p = None
    degrees = math.nan
    why = ""
    if not defined:
        why = "the figure is not defined on these samples"
    elif np.ptp(influence) <= 1e-12 * max(1.0, abs(value)) / len(points):
        why = "all samples say the same"
    elif blocks.effective < FEWEST:
        why = f"{blocks.effective:.1f} effective blocks, fewer than {FEWEST}"
    else:
        draws = value_of(_draw(blocks.sums(table), repetitions, seed))
        if not np.isfinite(draws).all():
            why = "the figure is not defined on some draws of blocks"
        else:
            spread = Spread.of(correlation, blocks)
            degrees = spread.degrees
            quantile = float(special.stdtrit(degrees, 0.5 + level / 2))
            error = math.sqrt(spread.widening) * float(draws.std())
            if len(parts) == 2:
                low, high = value - quantile * error, value + quantile * error
                p = float(2 * special.stdtr(degrees, -abs(value) / error)) if error else None
            else:
                # Percentiles as far out as the wider distribution lies, in units of the normal one.
                tail = float(special.ndtr(-quantile * math.sqrt(spread.widening)))
                low, high = (float(end) for end in np.quantile(draws, [tail, 1 - tail]))
    return Interval(
        value=value,
        low=low,
        high=high,
        error=error,
        why=why,
        num_blocks=blocks.num_blocks,
        effective_blocks=blocks.effective,
        effective_in_time=blocks.effective_in_time,
        effective_in_space=blocks.effective_in_space,
        size=blocks.size,
        scales=correlation.scales,
        share=correlation.share,
        degrees=degrees,
        p=p,
    )


def _draw(sums: Array, repetitions: int, seed: int) -> Array:
    """[R, K] sums over as many blocks as there are, drawn with replacement, of sums [B, K] of each."""
    number = len(sums)
    drawn = np.random.default_rng(seed).integers(0, number, size=(repetitions, number))
    drawn += number * np.arange(repetitions)[:, None]
    times = np.bincount(drawn.ravel(), minlength=repetitions * number).reshape(repetitions, number)
    return times.astype(np.float64) @ sums


def _checked(points: SamplePoints, contributions: Array) -> Array:
    table = np.asarray(contributions, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(points):
        raise UsageError(
            "contributions",
            expected=f"shape [{len(points)}, K], one row a sample",
            received=f"shape {table.shape}",
            remedy="Give what each sample adds to the sums, in the order of the samples.",
        )
    if not np.isfinite(table).all():
        raise UsageError(
            "contributions",
            expected="finite numbers",
            received="NaN or infinity among them",
            remedy="A sample without a value adds zeros; `values` makes them.",
        )
    return table
