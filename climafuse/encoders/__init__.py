"""Climate encoders: fields on a grid in, climate tokens out."""

from climafuse.encoders.base import Channels, ClimateEncoder
from climafuse.encoders.conv import ConvEncoder
from climafuse.encoders.grid_transformer import GridTransformerEncoder
from climafuse.encoders.summary import SummaryTokens

__all__ = [
    "Channels",
    "ClimateEncoder",
    "ConvEncoder",
    "GridTransformerEncoder",
    "SummaryTokens",
]
