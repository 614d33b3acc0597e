"""Digits can be read from the features of a number. Oracle: hand arithmetic, and a least-squares reader."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from climafuse.encoders.numbers import NUM_FEATURES, PERIODS, SCALES, number_features

# Order of the features: sin and cos of the value, sin and cos of its magnitude, squashed values, sign.
SIN, COS = 0, len(PERIODS)


def test_shape_type_and_range() -> None:
    values = torch.tensor([[0.0, -8.25], [1013.2, 55000.0]])
    features = number_features(values)
    assert features.shape == (2, 2, NUM_FEATURES)
    assert features.dtype == torch.float32
    assert features.abs().max() <= 1
    assert number_features(values.double()).dtype == torch.float64


def test_the_phase_of_period_ten_is_the_last_digit() -> None:
    # 1013 = 101 * 10 + 3: three tenths of a turn, as for 3 itself; -7 too, but |-7| is seven tenths.
    column = PERIODS.index(10.0)
    features = number_features(torch.tensor([3.0, 1013.0, -7.0]))
    for row in range(3):
        assert features[row, SIN + column].item() == pytest.approx(math.sin(0.6 * math.pi), abs=1e-3)
        assert features[row, COS + column].item() == pytest.approx(math.cos(0.6 * math.pi), abs=1e-3)
    magnitude = 2 * len(PERIODS)
    assert features[2, magnitude + column].item() == pytest.approx(math.sin(1.4 * math.pi), abs=1e-3)
    assert features[2, magnitude + len(PERIODS) + column].item() == pytest.approx(
        math.cos(1.4 * math.pi), abs=1e-3
    )


def test_sign_and_size_at_a_glance() -> None:
    features = number_features(torch.tensor([-3.0, 0.0, 30.0]))
    assert features[:, -1].tolist() == [-1.0, 0.0, 1.0]
    squashed = 4 * len(PERIODS) + SCALES.index(30.0)
    assert features[2, squashed].item() == pytest.approx(math.tanh(1.0))
    assert features[0, squashed].item() == pytest.approx(math.tanh(-0.1))


def test_phases_are_precise_to_tenths_near_a_thousand_hectopascal() -> None:
    # Float64 tells how far float32 is off: a tenth of a hPa is half a turn of the shortest period.
    values = np.linspace(950.0, 1050.0, 1001)
    features = number_features(torch.tensor(values, dtype=torch.float32)).double().numpy()
    seen = torch.tensor(values, dtype=torch.float32).double().numpy()
    for column, period in enumerate(PERIODS):
        turns = np.arctan2(features[:, SIN + column], features[:, COS + column]) / (2 * np.pi)
        error = (turns - seen / period + 0.5) % 1 - 0.5
        assert np.abs(error).max() < 1e-3
    tenth = number_features(torch.tensor([1013.2, 1013.3]))
    assert (tenth[0] - tenth[1]).abs().max() > 1.5  # half a turn


def test_digits_are_linearly_readable() -> None:
    # A linear reader fitted on two thirds of 0 … 1199 gives every digit of the others: nothing is memorized.
    values = torch.arange(1200)
    features = number_features(values.double())
    features = torch.cat([features, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    held_out = values % 3 == 0
    for place in (1, 10, 100):
        digits = values // place % 10
        wanted = torch.nn.functional.one_hot(digits, 10).double()
        reader = torch.linalg.lstsq(features[~held_out], wanted[~held_out], driver="gelsd").solution
        read = (features[held_out] @ reader).argmax(dim=1)
        right = (read == digits[held_out]).double().mean().item()
        assert right > (0.93 if place == 100 else 0.99), (place, right)


def test_a_plain_number_does_not_have_readable_digits() -> None:
    values = torch.arange(1200)
    plain = torch.stack([values.double(), torch.ones(len(values), dtype=torch.float64)], dim=1)
    wanted = torch.nn.functional.one_hot(values % 10, 10).double()
    read = (plain @ torch.linalg.lstsq(plain, wanted).solution).argmax(dim=1)
    assert (read == values % 10).double().mean() < 0.2
