"""An encoder that does not look: what a model can say from the question alone, or from place and time besides.

With this encoder the same fusion on the same frozen language model, trained for the same steps on the same texts,
learns all that the questions give away: how their answers are worded and what they usually are. With `place` it also
learns the geography and the calendar by heart. These are the controls that a model which reads the fields must beat.

Neither values nor the mask reach a token. Which variables have values is something that one can only know by looking:
a control that saw it would abstain rightly and be taken for a reader.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.encoders.base import Channels, ClimateEncoder
from climafuse.encoders.numbers import NUM_FEATURES, number_features
from climafuse.encoders.patches import check_options
from climafuse.encoders.positions import NUM_PLACE_FEATURES, NUM_TIME_FEATURES, place_features, time_features

EDGES = ("south", "north", "west", "east")
TIMES = ("first time", "last time")


class BlindEncoder(ClimateEncoder):
    """Learned climate tokens, the same for every window; with `place`, some that tell where and when it is.

    Args:
        channels: What the fields hold; nothing of it is looked at.
        width: C, the width of a climate token.
        tokens: How many learned tokens there are.
        place: Whether tokens are added that tell the box (its center, and its outermost rows and columns as numbers
            whose digits can be read) and its first and last time.

    Raises:
        ConfigurationError: An option is not positive.
    """

    def __init__(self, channels: Channels, width: int = 128, tokens: int = 16, place: bool = False) -> None:
        super().__init__(channels, width)
        check_options(width=width, tokens=tokens)
        self.learned = nn.Parameter(0.5 * torch.randn(tokens, width))  # [tokens, C]
        self.labels = tuple(f"learned {number}" for number in range(tokens))
        self.where_and_when = WhereAndWhen(width) if place else None
        if place:
            self.labels += ("center", *EDGES, *TIMES)

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Encode windows; see `ClimateEncoder.forward`. Every token is valid, whatever the window holds."""
        self.check(fields, mask, latitude, longitude, time)
        states = self.learned.expand(len(fields), -1, -1)  # [B, tokens, C]
        if self.where_and_when is not None:
            states = torch.cat([states, self.where_and_when(latitude, longitude, time)], dim=1)
        size = states.shape[:2]  # [B, M]
        nowhere = states.new_full(size, torch.nan)
        valid = torch.ones(size, dtype=torch.bool, device=states.device)
        return ClimateTokens(states, valid, nowhere, nowhere, time[:, -1:].expand(size), self.labels)


class WhereAndWhen(nn.Module):
    """Turns box and times into climate tokens: center, four edges, first and last time.

    Args:
        width: C, the width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.center = nn.Linear(NUM_PLACE_FEATURES, width)
        self.number = nn.Linear(NUM_FEATURES, width)
        self.edge = nn.Parameter(0.5 * torch.randn(len(EDGES), width))  # [edges, C]
        self.when = nn.Linear(NUM_TIME_FEATURES, width)
        self.which_time = nn.Parameter(0.5 * torch.randn(len(TIMES), width))  # [times, C]

    def forward(self, latitude: Tensor, longitude: Tensor, time: Tensor) -> Tensor:
        """Tell where and when; arguments as of `ClimateEncoder.forward`.

        Returns:
            [B, 7, C]. Padding repeats the last coordinate, so first and last are those of the window.
        """
        south, north = latitude[:, 0], latitude[:, -1]  # [B]
        west, east = longitude[:, 0], longitude[:, -1]
        center = place_features((south + north) / 2, west + (east - west) % 360 / 2)
        signed = (torch.stack([west, east], dim=1) + 180) % 360 - 180  # as it is spoken, [-180, 180)
        edges = torch.cat([torch.stack([south, north], dim=1), signed], dim=1)  # [B, edges]
        times = time_features(torch.stack([time[:, 0], time[:, -1]], dim=1))  # [B, times, features]
        return torch.cat(
            [
                self.center(center).unsqueeze(1),
                self.number(number_features(edges)) + self.edge,
                self.when(times) + self.which_time,
            ],
            dim=1,
        )
