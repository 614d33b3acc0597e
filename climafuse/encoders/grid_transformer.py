"""The default encoder: patches of the grid through a transformer, beside summary tokens of the box.

References:
    Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929, equation 1 (patch embedding).
    Nguyen et al. 2023, ClimaX, arXiv:2301.10343, section 3 (variables as tokens on a grid).
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens, concatenate
from climafuse.encoders.base import Channels, ClimateEncoder
from climafuse.encoders.patches import PatchGrid, check_options, padded_channels
from climafuse.encoders.positions import NUM_PLACE_FEATURES, NUM_TIME_FEATURES, place_features, time_features
from climafuse.encoders.summary import SummaryTokens
from climafuse.errors import ConfigurationError


class GridTransformerEncoder(ClimateEncoder):
    """Patches of every time step, embedded with their real coordinates, attend to one another.

    Args:
        channels: What the fields hold.
        width: C, the width of a climate token.
        depth: Number of transformer layers.
        heads: Attention heads.
        patch: Height and width of a patch, in grid cells.
        pooling: "none" gives a token for each patch and time step, "time" one for each time step.
        summary: Whether summary tokens are added.
        dropout: Share of the values that a layer leaves out in training, from 0 to below 1.

    Raises:
        ConfigurationError: An option does not make sense.
    """

    def __init__(
        self,
        channels: Channels,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        patch: int = 4,
        pooling: str = "none",
        summary: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, width)
        check_options(pooling=pooling, depth=depth, heads=heads, patch=patch, width=width)
        if width % heads:
            raise ConfigurationError(
                "encoder.options.width",
                expected=f"a multiple of heads = {heads}",
                received=width,
                remedy="Change width or heads.",
            )
        if not 0 <= dropout < 1:
            raise ConfigurationError(
                "encoder.options.dropout",
                expected="a share from 0 to below 1",
                received=dropout,
                remedy="For example 0.1.",
            )
        self.patch = patch
        self.pooling = pooling
        self.embedding = nn.Linear(2 * len(channels.names) * patch * patch, width)  # values and mask
        self.place = nn.Linear(NUM_PLACE_FEATURES, width)
        self.when = nn.Linear(NUM_TIME_FEATURES, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.summary = SummaryTokens(channels, width) if summary else None

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Encode windows; see `ClimateEncoder.forward`."""
        self.check(fields, mask, latitude, longitude, time)
        grid = PatchGrid.of(mask, latitude, longitude, self.patch)
        cells = rearrange(
            padded_channels(fields, mask, self.patch),
            "b t v (h p) (w q) -> b t (h w) (v p q)", p=self.patch, q=self.patch,
        )  # fmt: skip
        states = self.embedding(cells)  # [B, T, P, C]
        states = states + self.place(place_features(grid.latitude, grid.longitude)).unsqueeze(1)
        states = states + self.when(time_features(time)).unsqueeze(2)

        valid = rearrange(grid.valid, "b t p -> b (t p)")
        # A window without any value has nothing to attend to: let its tokens see each other, masked later.
        hidden = ~(valid | ~valid.any(dim=1, keepdim=True))
        states = self.layers(rearrange(states, "b t p c -> b (t p) c"), src_key_padding_mask=hidden)
        patches = grid.tokens(rearrange(states, "b (t p) c -> b t p c", t=time.shape[1]), time, self.pooling)
        if self.summary is None:
            return patches
        return concatenate([self.summary(fields, mask, latitude, longitude, time), patches])
