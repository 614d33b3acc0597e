"""Windows to tensors: the only place where numpy becomes torch. And which windows, in which order.

Everything random here is a pure function of its seed: the raw 64-bit stream of the counter-based Philox
generator, which NumPy guarantees across versions and machines, and arithmetic on it. So the sample at (seed,
epoch, position) can be computed anywhere without the ones before it having been drawn.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from climafuse.data.normalization import Statistics, normalize
from climafuse.data.times import days_since_epoch, format_time
from climafuse.data.window import Box, Window
from climafuse.errors import ModelInputError, UsageError


def collate_windows(windows: Sequence[Window], statistics: Statistics) -> dict[str, torch.Tensor]:
    """Windows as one batch of tensors.

    Channels are the variables of the statistics, in their order. A variable that a window lacks is all
    missing there, as one without values is: a model that is asked about it can say so. Windows smaller than
    the largest, in any dimension, are padded at the end: mask False, and the last coordinate repeated.

    Args:
        windows: B windows, of any size and place.
        statistics: Mean and standard deviation of each variable, from training times (`compute_statistics`).

    Returns:
        climate_fields: [B, T, V, H, W] float32, normalized, zero where missing.
        climate_mask: [B, T, V, H, W] bool, True where there is a value.
        climate_latitude: [B, H] float32, degrees north.
        climate_longitude: [B, W] float32, degrees east in [0, 360).
        climate_time: [B, T] float64, days since 1970-01-01.

    Raises:
        ModelInputError: No windows, a window has a variable that the statistics lack, or an infinite value.
    """
    if not windows:
        raise ModelInputError("windows", expected="at least one", received="none", remedy="Give a window.")
    variables = tuple(str(name) for name in statistics["variable"].values)
    num_times = max(len(window.time) for window in windows)
    height = max(len(window.latitude) for window in windows)
    width = max(len(window.longitude) for window in windows)
    size = len(windows)
    fields = np.full(
        (size, num_times, len(variables), height, width), np.nan, dtype=np.float32
    )  # [B, T, V, H, W]
    latitude = np.empty((size, height), dtype=np.float32)
    longitude = np.empty((size, width), dtype=np.float32)
    time = np.empty((size, num_times))
    for index, window in enumerate(windows):
        t, _, h, w = window.fields.shape
        if window.variables == variables:
            fields[index, :t, :, :h, :w] = window.fields
        else:
            fields[index, :t, _channels(window, variables), :h, :w] = np.moveaxis(window.fields, 1, 0)
        for target, coordinate in ((latitude[index], window.latitude), (longitude[index], window.longitude)):
            target[: len(coordinate)] = coordinate
            target[len(coordinate) :] = coordinate[-1]
        days = days_since_epoch(window.time)
        time[index, :t] = days
        time[index, t:] = days[-1]
    missing = np.isnan(fields)
    fields = normalize(fields, statistics, variables)
    fields[missing] = 0
    if not np.isfinite(fields).all():
        _refuse_infinite(windows)
    return {
        "climate_fields": torch.from_numpy(fields),
        "climate_mask": torch.from_numpy(~missing),
        "climate_latitude": torch.from_numpy(latitude),
        "climate_longitude": torch.from_numpy(longitude),
        "climate_time": torch.from_numpy(time),
    }


def _refuse_infinite(windows: Sequence[Window]) -> None:
    """Name the variable and the time: in the loss, they could only be guessed."""
    for window in windows:
        for step, variable, *_ in np.argwhere(np.isinf(window.fields)):
            raise ModelInputError(
                f"window with variable {window.variables[variable]!r} at {format_time(window.time[step])}",
                expected="finite values, and NaN where there are none",
                received="an infinite value",
                remedy="If it stands for a missing value, write NaN in its place.",
            )
    raise ModelInputError(
        "statistics",
        expected="means and standard deviations of the same fields",
        received="some by which normalized values are too large for float32",
        remedy="Compute them again from the training times.",
    )


def _channels(window: Window, variables: tuple[str, ...]) -> list[int]:
    unknown = [name for name in window.variables if name not in variables]
    if unknown:
        raise ModelInputError(
            "windows",
            expected=f"variables among {', '.join(variables)}",
            received=", ".join(unknown),
            remedy="Open the source with the variables the model was trained on.",
        )
    return [variables.index(name) for name in window.variables]


def data_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of samples in an epoch.

    Args:
        num_samples: How many there are.
        seed: Of the run, from 0.
        epoch: Number of the epoch, from 0.

    Returns:
        [num_samples] int64, a permutation; a pure function of the arguments.
    """
    # Sorting random numbers rather than Generator.permutation: NumPy may change the latter's stream.
    return np.argsort(_raw(seed, epoch, num_samples), kind="stable")


class EpochSampler(Sampler[int]):
    """Gives the samples of an epoch in `data_order`, from a position on.

    Args:
        num_samples: How many samples there are.
        seed: Of the order.
        start: Position in the first epoch to begin at, for a run that goes on where it stopped.
    """

    def __init__(self, num_samples: int, *, seed: int, start: int = 0) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.set_epoch(0, start=start)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch, and the position in it to begin at."""
        if not 0 <= start <= self.num_samples:
            raise UsageError(
                "start",
                expected=f"a position from 0 to {self.num_samples}",
                received=start,
                remedy="Check it.",
            )
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return iter(data_order(self.num_samples, seed=self.seed, epoch=self.epoch)[self.start :].tolist())

    def __len__(self) -> int:
        return self.num_samples - self.start


def sample_boxes(
    times: np.ndarray,
    num: int,
    *,
    size: tuple[float, float],
    seed: int,
    within: Box | None = None,
    places: Sequence[tuple[float, float, float]] = (),
) -> list[tuple[int, Box]]:
    """Random times and boxes.

    Times are uniform over those given. Centers are uniform over the area of the sphere: the sine of the
    latitude is uniform, so that the crowded rows near the poles do not get more than their share. Any
    longitude may be a center, so boxes cross the dateline and Greenwich; those near a pole stop there.

    Args:
        times: [N] steps to draw from, such as `Splits.valid_times`.
        num: How many to draw; more only appends.
        size: Height and width of the boxes, degrees.
        seed: From 0.
        within: Where centers may lie; None for the whole sphere.
        places: Latitude, longitude and share of centers that come more often: that share of the boxes lies there, the
            rest anywhere.

    Returns:
        Step and box of each.
    """
    if len(times) == 0:
        raise UsageError(
            "times", expected="at least one step", received="none", remedy="Choose another split."
        )
    # 53 bits make a float64 in [0, 1); three numbers a sample, in its own row whatever `num` is.
    uniform = (_raw(seed, _BOXES, 3 * num) >> np.uint64(11)).reshape(num, 3) * 2.0**-53
    south, north, west, width = (-90.0, 90.0, 0.0, 360.0)
    if within is not None:
        south, north, west, width = within.south, within.north, within.west, within.width
    step = (uniform[:, 0] * len(times)).astype(np.int64)
    low, high = np.sin(np.radians((south, north)))
    latitude = np.degrees(np.arcsin(np.clip(low + uniform[:, 1] * (high - low), -1, 1)))
    longitude = west + uniform[:, 2] * width
    if places:
        # A number in a stream of its own: without places, and beside them, all other draws are what they were.
        chance = (_raw(seed, _PLACES, num) >> np.uint64(11)) * 2.0**-53
        fixed = np.array(places)  # [places, 3]
        choice = np.searchsorted(np.cumsum(fixed[:, 2]), chance, side="right")
        at = np.flatnonzero(choice < len(fixed))
        latitude[at], longitude[at] = fixed[choice[at], 0], fixed[choice[at], 1]
    boxes = zip(latitude.tolist(), longitude.tolist(), strict=True)
    return [(index, Box(*center, *size)) for index, center in zip(times[step].tolist(), boxes, strict=True)]


_BOXES, _PLACES = 2**64 - 1, 2**64 - 2  # streams no epoch reaches


def _raw(seed: int, stream: int, num: int) -> np.ndarray:
    """[num] uint64 random numbers of a stream of a seed."""
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64):
        raise UsageError(
            "seed",
            expected="whole numbers from 0 to 2**64 - 1",
            received=(seed, stream),
            remedy="Choose another.",
        )
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(num)
