"""How far apart must two samples be to count as two? The correlation of their scores in time and space, measured.

A sample is a window: a time, a place and what a model scored there. Windows of one storm are right or wrong
together, so that n windows tell less than n. How much less, the scores themselves say, as far as they can: the
correlation is a mixture of

    share · exp(-|Δtime| / hours - distance / kilometers)        between two different samples, 1 of each with itself

and of smooth ones, which fall with the squares of both, over a grid of shares and lengths, each with the weight that
the scores give it (restricted likelihood of a Gaussian process, the mean being unknown; Diggle & Ribeiro 2007, section
5.4). A mixture rather than the best fit, because a hundred noisy scores leave weak correlations undecided, and the best
fit then often says that there is none.

Before the scores are seen, no correlation at all is held for likelier than some, and of those each in proportion to the
number of independent samples that it would leave. Smooth ones are held for unlikely: they reach less far than an
exponential of the same length, so that they have to show in the scores. The figures were chosen where independent and
correlated scores get intervals that hold about as often as they say (`scripts/matrix statistics`).

What cannot be measured is not assumed away:

- A hundred scores hardly tell a correlation over 1600 km from one over 600, which takes a seventh of their worth. Where
  the fields are known to be alike over some length (`field_scales`, measured from far more data), shorter ones are not
  looked for: scores are then correlated at least as far as the fields, or independent.
- Lengths of the order of the samples' extent look like the mean. The grid ends with lengths of which ten blocks would
  not fit in, so that scores which are alike over these get no interval.
- Fewer than ten different times tell nothing of the correlation in time: samples of near places then count as near,
  whatever their times. So do those of near times where there are fewer than ten places.
- Every figure is about times like these and places like these.

References:
    P. J. Diggle, P. J. Ribeiro, Model-based Geostatistics, Springer 2007.
    T. Gneiting, Strictly and non-strictly positive definite functions on spheres, Bernoulli 19, 2013: the exponential
    of the great-circle distance is a correlation on the sphere; of squares only that of the chord is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy import optimize

from climafuse.data.store import TrainingStore
from climafuse.data.times import days_since_epoch
from climafuse.data.window import Window
from climafuse.errors import UsageError
from climafuse.facts.kinds import EARTH_RADIUS

FEWEST = 10  # times or places that tell of a correlation; blocks that an interval is claimed from
LONGEST = 8  # the longest correlation looked for is the period of the samples over this,
FARTHEST = 2  # and the mean distance between their places over this
MOST = 400  # samples that the correlation is measured from: linear algebra takes their number cubed
CELLS_OR_TIMES = 200  # at which fields are compared
NO_CORRELATION = 0.7  # how likely it is held to be before the scores are seen,
SMOOTH = 0.1  # and a smooth correlation against an exponential one
SHARES = np.array([0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.999])  # [S]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scales:
    """A length in time and one in space.

    Args:
        hours: In time.
        kilometers: Along the great circle.
    """

    hours: float = 0.0
    kilometers: float = 0.0


NO_FLOOR = Scales()


@dataclass(frozen=True)
class Decay(Scales):
    """A correlation that falls to 1/e over a length in time and one in space.

    Args:
        smooth: With the squares of time and chord, not with time and arc.
    """

    smooth: bool = False

    def along(self, apart: Array, length: float) -> Array:
        """Correlation along one axis, of distances in units of the length."""
        return np.exp(-np.square(apart / length) if self.smooth else -apart / length)


class SamplePoints:
    """When and where samples were taken.

    Args:
        hours: [N] since any date.
        latitude: [N] degrees north.
        longitude: [N] degrees east, of any turn.

    Raises:
        UsageError: They are not of one length, empty or not finite.
    """

    def __init__(self, hours: Any, latitude: Any, longitude: Any) -> None:
        self.hours, self.latitude, self.longitude = (
            np.asarray(values, dtype=np.float64) for values in (hours, latitude, longitude)
        )
        shapes = {values.shape for values in (self.hours, self.latitude, self.longitude)}
        if len(shapes) > 1 or self.hours.ndim != 1 or not self.hours.size:
            raise UsageError(
                "samples",
                expected="hours, latitude and longitude of each sample, one at least",
                received=f"shapes {', '.join(map(str, sorted(shapes)))}",
                remedy="Give three arrays of one length.",
            )
        if not all(np.isfinite(values).all() for values in (self.hours, self.latitude, self.longitude)):
            raise UsageError(
                "samples",
                expected="finite hours, latitudes and longitudes",
                received="NaN or infinity among them",
                remedy="Leave out samples without time or place.",
            )

    @classmethod
    def of_windows(cls, windows: Sequence[Window]) -> SamplePoints:
        """Valid times and centers of windows."""
        centers = [_center(window) for window in windows]
        return cls(
            24 * days_since_epoch([window.time[-1] for window in windows]),
            [latitude for latitude, _ in centers],
            [longitude for _, longitude in centers],
        )

    def __len__(self) -> int:
        return len(self.hours)

    def subset(self, rows: Array) -> SamplePoints:
        """Some of the samples.

        Args:
            rows: Their numbers, or [N] booleans.
        """
        return SamplePoints(self.hours[rows], self.latitude[rows], self.longitude[rows])

    @cached_property
    def times(self) -> Array:
        """Different times, ascending, hours."""
        return np.unique(self.hours)

    @cached_property
    def step(self) -> float:
        """Median distance between neighboring times, hours; 0 where there is one time."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0

    @cached_property
    def place_numbers(self) -> Array:
        """[N] which of the different places."""
        places = np.stack([self.latitude, self.longitude % 360.0])
        return np.unique(places, axis=1, return_inverse=True)[1].ravel()

    @cached_property
    def num_places(self) -> int:
        """How many different places there are."""
        return int(self.place_numbers.max()) + 1

    @cached_property
    def lags(self) -> Array:
        """[N, N] between two samples, hours."""
        return np.abs(self.hours[:, None] - self.hours)

    @cached_property
    def distances(self) -> Array:
        """[N, N] between two samples along the great circle, km."""
        return great_circle(self.latitude[:, None], self.longitude[:, None], self.latitude, self.longitude)

    @cached_property
    def chords(self) -> Array:
        """[N, N] between two samples through the Earth, km."""
        return 2 * EARTH_RADIUS * np.sin(self.distances / 2 / EARTH_RADIUS)

    def correlated(self, decay: Decay) -> Array:
        """[N, N] correlation of the given kind, 1 on the diagonal."""
        distances = "chords" if decay.smooth else "distances"
        return self._along(decay, "lags", decay.hours) * self._along(decay, distances, decay.kilometers)

    def _along(self, decay: Decay, axis: str, length: float) -> Array:
        """[N, N] along one axis, kept: every figure of an evaluation asks for the same ones."""
        key = (axis, length, decay.smooth)
        if key not in self._kept:
            self._kept[key] = decay.along(getattr(self, axis), length)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[str, float, bool], Array]:
        return {}

    def candidates(self, floor: Scales = NO_FLOOR) -> Candidates:
        """Correlations that these samples could show.

        Args:
            floor: The shortest lengths looked for.
        """
        if floor not in self._candidates:
            self._candidates[floor] = Candidates(self, floor)
        return self._candidates[floor]

    @cached_property
    def _candidates(self) -> dict[Scales, Candidates]:
        return {}

    @cached_property
    def _few(self) -> tuple[Array, SamplePoints]:
        """Rows of those that the correlation is measured from, and these."""
        if len(self) <= MOST:
            return np.arange(len(self)), self
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:MOST])
        return rows, self.subset(rows)

    def correlation(self, scores: Array, floor: Scales = NO_FLOOR) -> Correlation:
        """Measure how scores go together.

        Args:
            scores: [N] one number a sample, of any scale and mean.
            floor: The shortest lengths looked for, as of `field_scales`.

        Returns:
            The correlation, as far as these samples can tell.
        """
        rows, few = self._few
        candidates = few.candidates(floor)
        return Correlation(self, candidates.decays, candidates.shares(scores[rows]))


class Candidates:
    """Correlations that samples could show, and how likely each is held to be.

    Args:
        points: When and where the samples are.
        floor: The shortest lengths looked for.
    """

    def __init__(self, points: SamplePoints, floor: Scales) -> None:
        self.points = points
        self.decays = [
            Decay(hours, kilometers, smooth)
            for smooth in (False, True)
            for hours in self._hours(floor.hours)
            for kilometers in self._kilometers(floor.kilometers)
            if math.isfinite(hours) or math.isfinite(kilometers)
        ]

    # Infinite lengths stand for what is alike at all times or places, and for what these cannot tell.
    def _hours(self, floor: float) -> list[float]:
        times = self.points.times
        found = [math.inf] if self.points.num_places >= FEWEST else []
        if len(times) >= FEWEST:
            found += _ladder(max(self.points.step / 1.5, floor), float(np.ptp(times)) / LONGEST)
        return found

    def _kilometers(self, floor: float) -> list[float]:
        points = self.points
        found = [math.inf] if len(points.times) >= FEWEST else []
        if points.num_places >= FEWEST:
            places = np.unique(points.place_numbers, return_index=True)[1]
            distances = points.distances[np.ix_(places, places)][np.triu_indices(len(places), 1)]
            # Half the distance within which there is about one other place.
            nearest = float(np.quantile(distances, 1 / len(places))) / 2
            found += _ladder(max(nearest, floor), float(distances.mean()) / FARTHEST)
        return found

    @cached_property
    def _spectra(self) -> list[tuple[Array, Array]]:
        """For each: eigenvalues [N - 1] and vectors [N, N - 1] of its correlation without the mean."""
        found = []
        for decay in self.decays:
            matrix = self.points.correlated(decay)
            rows = matrix.mean(axis=0)
            # The mean is one eigenvector; raised above all others, it comes last and is dropped.
            centered = matrix - rows - rows[:, None] + rows.mean() + 2.0
            values, vectors = np.linalg.eigh(centered)
            found.append((values[:-1].clip(0.0), vectors[:, :-1]))
        return found

    def shares(self, scores: Array) -> Array:
        """[candidates] expected share of each in the correlation of scores [N]."""
        deviations = scores - scores.mean()
        scale = math.sqrt(float(deviations @ deviations))
        if not self.decays or np.ptp(scores) == 0:
            return np.zeros(len(self.decays))
        deviations = deviations / scale
        half = (len(scores) - 1) / 2
        logs = []
        for values, vectors in self._spectra:
            variances = 1 + SHARES[:, None] * (values - 1)  # [S, N - 1]
            squares = (deviations @ vectors) ** 2
            logs.append(
                -0.5 * np.log(variances).sum(axis=1) - half * np.log((squares / variances).sum(axis=1))
            )
        # Against no correlation at all, of which both sums are 0.
        highest = max(np.max(logs), 0.0)
        weights = self._prior * np.exp(np.array(logs) - highest)  # [candidates, S]
        weights /= weights.sum() + NO_CORRELATION * math.exp(-highest)
        return np.asarray(weights @ SHARES)

    @cached_property
    def _prior(self) -> Array:
        """[candidates, S] how likely each is held to be: the less so, the fewer samples these would be worth."""
        common = np.array([self.points.correlated(decay).mean() for decay in self.decays])
        likely = np.array([SMOOTH if decay.smooth else 1.0 for decay in self.decays])
        worth = likely[:, None] / (1 + SHARES * (common[:, None] * len(self.points) - 1))
        return np.asarray((1 - NO_CORRELATION) * worth / worth.sum())


class Correlation:
    """Correlation between samples: a mixture of such, and noise of each sample's own.

    Args:
        points: When and where they are.
        decays: How those mixed fall.
        shares: [decays] of each in the variance of a sample.
    """

    def __init__(self, points: SamplePoints, decays: Sequence[Decay], shares: Array) -> None:
        self.points = points
        self.decays = list(decays)
        self.shares = shares

    @property
    def share(self) -> float:
        """Of a sample's variance, what it has in common with one nearby."""
        return float(self.shares.sum())

    @cached_property
    def matrix(self) -> Array:
        """[N, N] between the samples."""
        total = np.zeros((len(self.points), len(self.points)))
        for decay, share in zip(self.decays, self.shares, strict=True):
            if share > 1e-4:
                total += share * self.points.correlated(decay)
        np.fill_diagonal(total, 1.0)
        return total

    @property
    def inflation(self) -> float:
        """How much larger the variance of the mean is than that of as many independent samples."""
        return float(self.matrix.mean() * len(self.points))

    @cached_property
    def scales(self) -> Scales:
        """Where the common part has fallen to 1/e; infinite where it does not, or where samples cannot tell."""
        return Scales(
            self._fold([decay.hours for decay in self.decays]),
            self._fold([decay.kilometers for decay in self.decays]),
        )

    def _fold(self, lengths: list[float]) -> float:
        """Where the common part has fallen to 1/e along an axis on which those mixed have these lengths."""
        if not self.share:
            return 0.0

        def above(log: float) -> float:
            apart = np.array(math.exp(log))
            left = [
                share * float(decay.along(apart, length))
                for decay, share, length in zip(self.decays, self.shares, lengths, strict=True)
            ]
            return sum(left) / self.share - math.exp(-1)

        # Every length that is not infinite lies well between.
        near, far = math.log(1e-6), math.log(1e12)
        return math.inf if above(far) > 0 else math.exp(optimize.brentq(above, near, far))


def _ladder(shortest: float, longest: float) -> list[float]:
    """Lengths that double, from the one to the other."""
    if shortest >= longest:
        return [longest] if longest > 0 else []
    rungs = max(2, round(math.log2(longest / shortest)) + 1)
    return [float(length) for length in np.geomspace(shortest, longest, rungs)]


def great_circle(latitude: Array, longitude: Array, latitude2: Array, longitude2: Array) -> Array:
    """Distance of points on the sphere, km, by the haversine formula; arguments in degrees broadcast."""
    south, north = np.radians(latitude), np.radians(latitude2)
    half_turn = np.radians(np.subtract(longitude, longitude2)) / 2
    h = np.sin((north - south) / 2) ** 2 + np.cos(south) * np.cos(north) * np.sin(half_turn) ** 2
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0))))


def _center(window: Window) -> tuple[float, float]:
    """Latitude and longitude between the outer rows and columns; a window over Greenwich reads 359, 0, 1."""
    width = (window.longitude[-1] - window.longitude[0]) % 360.0
    return (
        float(window.latitude[0] + window.latitude[-1]) / 2,
        float(window.longitude[0] + width / 2) % 360.0,
    )


def field_scales(store: TrainingStore) -> Scales:
    """Correlation lengths of the fields themselves, as a floor for those of scores.

    Args:
        store: The fields, of all splits.

    Returns:
        As of `anomaly_scales`, over times at growing distances and over cells drawn by their area.
    """
    # From the first step to the whole period: pairs of every lag.
    steps = np.unique(np.geomspace(1, len(store.time), 2 * CELLS_OR_TIMES).round().astype(np.int64)) - 1
    latitude, longitude = (np.asarray(axis, dtype=np.float64) for axis in (store.latitude, store.longitude))
    rows, columns = _cells(latitude, longitude)
    return anomaly_scales(
        store.cells(steps, rows, columns),
        24 * days_since_epoch(store.time[steps]),
        latitude[rows],
        longitude[columns],
    )


def anomaly_scales(fields: Array, hours: Array, latitude: Array, longitude: Array) -> Scales:
    """Correlation lengths of anomalies.

    Anomalies from the mean over time at each cell (over more than half a year, from the annual cycle, which is
    correlated for months), in units of their standard deviation there, are compared between times at the same cells
    and between cells at the same times, and an exponential is fitted to either (least squares; in time to the products
    that an exponential has after its mean is taken off). Of several variables the longest lengths count.

    Args:
        fields: [T, V, P], NaN where missing.
        hours: [T] since any 1 January.
        latitude: [P] degrees north.
        longitude: [P] degrees east.

    Returns:
        The lengths; infinite where there are too few times or cells to tell (fewer than ten).
    """
    lags = np.abs(hours[:, None] - hours)
    distances = great_circle(latitude[:, None], longitude[:, None], latitude, longitude)
    cycle = _annual_cycle(hours)
    found = []
    for variable in range(fields.shape[1]):
        values = fields[:, variable].astype(np.float64)  # [T, P]
        values = values[:, np.isfinite(values).all(axis=0)]
        if len(hours) < FEWEST:
            return Scales(math.inf, math.inf)
        values = values - cycle @ np.linalg.lstsq(cycle, values, rcond=None)[0]
        deviation = values.std(axis=0)
        usable = deviation > 1e-6 * deviation.max(initial=0.0)
        if usable.sum() < FEWEST:
            return Scales(math.inf, math.inf)
        held = np.flatnonzero(np.isfinite(fields[:, variable]).all(axis=0))[usable]
        values = values[:, usable] / deviation[usable]
        found.append(
            Scales(
                _fit(values @ values.T / len(held), lags, centered=True),
                _fit(values.T @ values / len(hours), distances[np.ix_(held, held)], centered=False),
            )
        )
    return Scales(max(scales.hours for scales in found), max(scales.kilometers for scales in found))


def _annual_cycle(hours: Array) -> Array:
    """[T, K] what anomalies are from: the mean, and two harmonics of the year where there is enough of it."""
    year = 24 * 365.2425
    turns = 2 * math.pi * hours / year
    waves = [np.sin(turns), np.cos(turns), np.sin(2 * turns), np.cos(2 * turns)]
    return np.stack([np.ones_like(hours), *(waves if np.ptp(hours) > year / 2 else [])], axis=1)


def _cells(latitude: Array, longitude: Array) -> tuple[Array, Array]:
    """Rows and columns of cells drawn by their area."""
    area = np.repeat(np.cos(np.radians(latitude)).clip(1e-6), len(longitude))
    number = min(CELLS_OR_TIMES, area.size)
    drawn = np.random.default_rng(0).choice(area.size, size=number, replace=False, p=area / area.sum())
    return np.divmod(np.sort(drawn), len(longitude))


def _fit(products: Array, lengths: Array, *, centered: bool) -> float:
    """Length of the exponential whose values are nearest to mean products of anomalies.

    Args:
        products: [N, N] of anomalies of unit variance.
        lengths: [N, N] between them.
        centered: Whether the mean over N was taken off the anomalies.
    """
    others = ~np.eye(len(lengths), dtype=bool)

    def miss(log: float) -> float:
        expected = np.exp(-lengths / math.exp(log))
        if centered:
            rows = expected.mean(axis=0)
            expected = expected - rows - rows[:, None] + rows.mean()
            expected = expected / np.diag(expected).mean()
        return float(np.square((products - expected)[others]).sum())

    positive = lengths[lengths > 0]
    bounds = (math.log(positive.min() / 10), math.log(positive.max()))
    return math.exp(optimize.minimize_scalar(miss, bounds=bounds, method="bounded").x)
