"""What an encoder is: fields on a grid in, climate tokens out.

Positions come from real coordinates and missing values from a mask, so that one set of weights serves any
box, resolution and history. A new encoder is a subclass of `ClimateEncoder` in one file; see
`examples/own_encoder.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import ModelInputError


@dataclass(frozen=True)
class Channels:
    """What the channels of the fields are, and how to get from normalized values back to physical ones.

    Args:
        names: Variables, V of them, in the order of the fields' channels.
        scale: Value in natural units = normalized value * scale + offset, for each channel.
        offset: See scale. Natural units are those people speak in: °C, hPa, m/s, mm.
    """

    names: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that there is a scale and an offset for each name."""
        if not (len(self.names) == len(self.scale) == len(self.offset) > 0):
            raise ModelInputError(
                "channels",
                expected="a name, a scale and an offset for each of one or more channels",
                received=f"{len(self.names)} names, {len(self.scale)} scales, {len(self.offset)} offsets",
                remedy="Take them from the statistics of the training store.",
            )


class ClimateEncoder(nn.Module, ABC):
    """Base of encoders.

    Args:
        channels: What the fields hold.
        width: C, the width of the climate tokens.

    Attributes:
        options: Arguments that the subclass was made with beside the channels; a configuration records them,
            so that an encoder that was passed as an instance can be made again.
    """

    options: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note down the arguments. Copies are made without any and bring theirs along."""
        encoder = super().__new__(cls)
        given = signature(cls.__init__).bind_partial(encoder, *args, **kwargs)
        given.apply_defaults()
        options = dict(list(given.arguments.items())[1:])  # without the encoder itself
        for parameter in given.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                options |= options.pop(parameter.name, {})
        options.pop("channels", None)
        object.__setattr__(encoder, "options", options)
        return encoder

    def __init__(self, channels: Channels, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.width = width

    @abstractmethod
    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Encode windows.

        Args:
            fields: [B, T, V, H, W] float32, normalized; 0 where missing.
            mask: [B, T, V, H, W] bool, True where valid.
            latitude: [B, H] degrees north, ascending; repeated values are padding.
            longitude: [B, W] degrees east in [0, 360), west to east; repeated values are padding.
            time: [B, T] days since 1970-01-01, ascending; repeated values are padding.

        Returns:
            Climate tokens.
        """

    def check(self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor) -> None:
        """Refuse inputs that do not fit together; called first by every encoder.

        Raises:
            ModelInputError: A shape, the number of channels or the type of the mask is wrong.
        """
        if fields.ndim != 5 or fields.shape[2] != len(self.channels.names):
            raise ModelInputError(
                "climate_fields",
                expected=f"[B, T, {len(self.channels.names)}, H, W] with {', '.join(self.channels.names)}",
                received=str(tuple(fields.shape)),
                remedy="Select the variables the model was trained on, in this order.",
            )
        if mask.dtype != torch.bool:
            raise ModelInputError(
                "climate_mask",
                expected="bool, True where a value is valid",
                received=str(mask.dtype),
                remedy="Make the tensors with climafuse.data.collate_windows.",
            )
        batch, steps, _, height, width = fields.shape
        expected = {
            "climate_mask": (mask, fields.shape),
            "climate_latitude": (latitude, (batch, height)),
            "climate_longitude": (longitude, (batch, width)),
            "climate_time": (time, (batch, steps)),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != tuple(shape):
                raise ModelInputError(
                    name,
                    expected=f"shape {tuple(shape)}, as the fields have it",
                    received=str(tuple(tensor.shape)),
                    remedy="Make the tensors with climafuse.data.collate_windows.",
                )
