"""The small convolutional encoder of earlier climate-text systems: a baseline, and for tiny machines.

Two strided convolutions on each time step, then one token for each time step ("time") or for each cell of the
coarse map ("none"). A mask channel tells the network what is missing. Coordinates enter as features of each
cell, so any box and resolution is accepted.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens, concatenate
from climafuse.encoders.base import Channels, ClimateEncoder
from climafuse.encoders.patches import PatchGrid, check_options, padded_channels
from climafuse.encoders.positions import NUM_PLACE_FEATURES, NUM_TIME_FEATURES, place_features, time_features
from climafuse.encoders.summary import SummaryTokens


class ConvEncoder(ClimateEncoder):
    """Strided convolutions on each time step.

    Args:
        channels: What the fields hold.
        width: C, the width of a climate token.
        pooling: "time" gives a token for each time step, "none" one for each cell of the coarse map.
        summary: Whether summary tokens are added.

    Raises:
        ConfigurationError: An option does not make sense.
    """

    STRIDE = 4  # of both convolutions together

    def __init__(
        self, channels: Channels, width: int = 128, pooling: str = "time", summary: bool = False
    ) -> None:
        super().__init__(channels, width)
        check_options(pooling=pooling, width=width // 2)
        self.pooling = pooling
        self.convolutions = nn.Sequential(
            nn.Conv2d(2 * len(channels.names), width // 2, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
        )
        self.place = nn.Linear(NUM_PLACE_FEATURES, width)
        self.when = nn.Linear(NUM_TIME_FEATURES, width)
        self.norm = nn.LayerNorm(width)
        self.summary = SummaryTokens(channels, width) if summary else None

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Encode windows; see `ClimateEncoder.forward`."""
        self.check(fields, mask, latitude, longitude, time)
        grid = PatchGrid.of(mask, latitude, longitude, self.STRIDE)
        values = padded_channels(fields, mask, self.STRIDE)
        states = self.convolutions(rearrange(values, "b t v h w -> (b t) v h w"))
        states = rearrange(states, "(b t) c h w -> b t (h w) c", t=time.shape[1])  # [B, T, P, C]
        states = states + self.place(place_features(grid.latitude, grid.longitude)).unsqueeze(1)
        states = self.norm(states + self.when(time_features(time)).unsqueeze(2))
        tokens = grid.tokens(states, time, self.pooling)
        if self.summary is None:
            return tokens
        return concatenate([self.summary(fields, mask, latitude, longitude, time), tokens])
