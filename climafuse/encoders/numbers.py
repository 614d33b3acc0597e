"""Numbers as features in which their decimal digits can be read linearly.

A language model writes a number digit by digit, while a network carries it as one magnitude: turning 1013.2
into "1", "0", "1", "3" is what a fusion learns slowest. The phase of x on a circle of period 10 *is* the last
digit, of period 100 the tens, and so on; the same of |x| beside a sign, since digits are written of
magnitudes.

References:
    Zhou et al. 2025, FoNE: Precise Single-Token Number Embeddings via Fourier Features, arXiv:2502.09741.
    Golkar et al. 2023, xVal: A Continuous Number Encoding for Large Language Models, arXiv:2310.02989.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Periods in natural units. Half and fifth of each power of ten sharpen the borders between digits.
PERIODS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
# Scales at which the plain value is squashed: sign and size at a glance, from tenths to hundreds.
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
NUM_FEATURES = 4 * len(PERIODS) + len(SCALES) + 1


def number_features(values: Tensor) -> Tensor:
    """Features of numbers.

    Args:
        values: [...] float32, natural units.

    Returns:
        [..., NUM_FEATURES] float32, all in [-1, 1].
    """
    # float32 keeps a phase of 2π · 1013 / 0.2 to about 1e-3 of a turn: enough for tenths.
    angular = 2 * math.pi / values.new_tensor(PERIODS)  # [periods]
    phase = values.unsqueeze(-1) * angular  # [..., periods]
    magnitude = values.abs().unsqueeze(-1) * angular
    squashed = torch.tanh(values.unsqueeze(-1) / values.new_tensor(SCALES))  # [..., scales]
    sign = torch.sign(values).unsqueeze(-1)
    return torch.cat([phase.sin(), phase.cos(), magnitude.sin(), magnitude.cos(), squashed, sign], dim=-1)
