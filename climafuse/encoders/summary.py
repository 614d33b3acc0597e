"""Summary tokens: the statistics of each variable over the box, each as one climate token.

Patches tell where things are; a statement such as "the mean temperature is 8 °C" is about the whole box, and
a language model must find its digits somewhere. Each summary token holds one statistic of one variable as a
number whose digits can be read (`number_features`). The statistics are computed from the fields in the
forward pass, weighted with the cosine of latitude over valid cells; nothing in them comes from the text.

Statistics at the valid time, for each variable: mean, highest and lowest value with latitude and longitude of
each, north half minus south half, east half minus west half; the change of the mean since the first time; and the
share of the area that has a value. The last is always told, also where it is nothing: attention cannot see that a
token is not there, and "no temperature is given" must be read from something.

A vector given by its components has one more: the direction that its mean comes from. From two tokens it would have to
be put together in the language model, where nothing is made for turning two numbers into an angle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens, concatenate
from climafuse.encoders.base import Channels
from climafuse.encoders.numbers import NUM_FEATURES, number_features
from climafuse.encoders.positions import fresh

EDGE = 1e-4  # of a degree, or of half a box: less is rounding, and the row or column stands in the middle
STATISTICS = (
    "mean",
    "maximum",
    "latitude of maximum",
    "longitude of maximum",
    "minimum",
    "latitude of minimum",
    "longitude of minimum",
    "north minus south",
    "east minus west",
    "change",
    "valid share",
)

VECTORS = (("u10", "v10"),)  # eastward and northward component
TURNS = (1.0, 2.0, 4.0, 8.0)  # of a full circle: the last tells eight octants apart
STILL = 0.5  # length of a mean vector, in natural units, at which its direction begins to count


class SummaryTokens(nn.Module):
    """Turns each statistic of each variable into a climate token.

    Args:
        channels: What the fields hold.
        width: C, the width of a token.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, channels: Channels, width: int) -> None:
        super().__init__()
        # Constants of the model's configuration, not state: they are not in the checkpoint twice.
        self.register_buffer("scale", torch.tensor(channels.scale), persistent=False)  # [V]
        self.register_buffer("offset", torch.tensor(channels.offset), persistent=False)  # [V]
        self.number = nn.Linear(NUM_FEATURES, width)
        self.variable = nn.Parameter(0.5 * torch.randn(len(channels.names), 1, width))  # [V, 1, C]
        self.statistic = nn.Parameter(0.5 * torch.randn(len(STATISTICS), width))  # [statistics, C]
        names = channels.names
        self.vectors = [(u, v) for u, v in VECTORS if u in names and v in names]
        self.components = [names.index(name) for pair in self.vectors for name in pair]  # u v u v …
        if self.vectors:
            self.direction = nn.Linear(2 * len(TURNS) + 1, width)
            self.vector = nn.Parameter(0.5 * torch.randn(len(self.vectors), width))  # [vectors, C]
        self.labels = (
            *(f"{name} {statistic}" for name in names for statistic in STATISTICS),
            *(f"{u}, {v} direction" for u, v in self.vectors),
        )

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Summarize windows; arguments as of `ClimateEncoder.forward`.

        Returns:
            V * len(STATISTICS) tokens, and one for each vector.
        """
        fields, mask = _first_and_last(fields, mask, time)
        natural = fields * self.scale[:, None, None] + self.offset[:, None, None]
        values, valid, place = summarize(natural, mask, latitude, longitude)
        states = (
            self.number(number_features(values)) + self.variable + self.statistic
        )  # [B, V, statistics, C]
        parts = [
            ClimateTokens(
                states=states.flatten(1, 2),
                mask=valid.flatten(1, 2),
                latitude=place[0].flatten(1, 2),
                longitude=place[1].flatten(1, 2),
                time=time[:, -1:].expand(-1, states.shape[1] * states.shape[2]),
                labels=self.labels,
            )
        ]
        if self.vectors:
            components = natural[:, -1, self.components].unflatten(1, (-1, 2))  # [B, vectors, 2, H, W]
            both = mask[:, -1, self.components].unflatten(1, (-1, 2)).all(dim=2)  # [B, vectors, H, W]
            features, known = directions(components, both, latitude)
            nowhere = torch.full_like(known, torch.nan, dtype=natural.dtype)
            parts.append(
                ClimateTokens(
                    states=self.direction(features) + self.vector,
                    mask=known,
                    latitude=nowhere,
                    longitude=nowhere,
                    time=time[:, -1:].expand(-1, len(self.vectors)),
                )
            )
        return concatenate(parts)


def directions(components: Tensor, mask: Tensor, latitude: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the direction that mean vectors come from.

    Args:
        components: [B, vectors, 2, H, W] eastward and northward, in natural units.
        mask: [B, vectors, H, W] bool, where both are valid.
        latitude: [B, H] degrees north.

    Returns:
        [B, vectors, 2 * len(TURNS) + 1] sine and cosine of the angle, clockwise from north, and of its multiples,
        and the length, squashed; [B, vectors] bool, where anything is valid.
    """
    weight = torch.cos(torch.deg2rad(latitude)).clamp(min=1e-12)[:, None, :, None] * mask
    mean, known = _mean(
        components.masked_fill(~mask.unsqueeze(2), 0.0), weight.unsqueeze(2)
    )  # [B, vectors, 2]
    east, north = mean.unbind(dim=-1)
    angle = torch.atan2(-east, -north).unsqueeze(-1) * mean.new_tensor(TURNS)  # where it comes from
    length = torch.tanh(torch.hypot(east, north) / STILL).unsqueeze(-1)
    return torch.cat([angle.sin(), angle.cos(), length], dim=-1), known[..., 0]


def summarize(
    fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Statistics of fields over their box.

    Args:
        fields: [B, T, V, H, W] in natural units.
        mask: [B, T, V, H, W] bool.
        latitude: [B, H] degrees north, ascending, padding repeated at the end.
        longitude: [B, W] degrees east in [0, 360), west to east, padding repeated at the end.

    Returns:
        values [B, V, statistics]; valid [B, V, statistics] bool; (latitude, longitude) [B, V, statistics] of
        where a statistic was found, NaN where it is about the whole box. Longitudes are in [-180, 180).
    """
    fields = fields.masked_fill(~mask, 0.0)
    last, valid = fields[:, -1], mask[:, -1]  # [B, V, H, W]
    weight = torch.cos(torch.deg2rad(latitude)).clamp(min=1e-12)[:, None, :, None]  # [B, 1, H, 1]
    east = (longitude + 180) % 360 - 180  # [B, W]

    mean, any_valid = _mean(last, valid * weight)  # [B, V]
    area = weight * fresh(latitude)[:, None, :, None] * fresh(longitude)[:, None, None, :]  # without padding
    share = (valid * area).sum(dim=(-2, -1)) / area.sum(dim=(-2, -1))  # [B, V]
    middle = (latitude[:, :1] + latitude[:, -1:]) / 2  # [B, 1], of the real rows: padding repeats the last
    north = weight * (latitude > middle + EDGE)[:, None, :, None]
    south = weight * (latitude < middle - EDGE)[:, None, :, None]
    columns = _position(longitude)  # [B, W]
    right = weight * (columns > EDGE)[:, None, None, :]
    left = weight * (columns < -EDGE)[:, None, None, :]
    halves = [_mean(last, valid * half) for half in (north, south, right, left)]
    both = mask[:, 0] & valid
    change, changed = _mean(last - fields[:, 0], both * weight)
    if fields.shape[1] == 1:
        changed = torch.zeros_like(changed)  # one time tells of no change

    infinity = torch.finfo(last.dtype).max
    highest, highest_at = last.masked_fill(~valid, -infinity).flatten(2).max(dim=2)  # [B, V]
    lowest, lowest_at = last.masked_fill(~valid, infinity).flatten(2).min(dim=2)
    width = fields.shape[-1]
    place = {
        key: (latitude.gather(1, at // width), east.gather(1, at % width))
        for key, at in (("highest", highest_at), ("lowest", lowest_at))
    }
    nowhere = torch.full_like(mean, torch.nan)
    whole = (nowhere, nowhere)
    table = {
        "mean": (mean, any_valid, whole),
        "maximum": (highest, any_valid, place["highest"]),
        "latitude of maximum": (place["highest"][0], any_valid, place["highest"]),
        "longitude of maximum": (place["highest"][1], any_valid, place["highest"]),
        "minimum": (lowest, any_valid, place["lowest"]),
        "latitude of minimum": (place["lowest"][0], any_valid, place["lowest"]),
        "longitude of minimum": (place["lowest"][1], any_valid, place["lowest"]),
        "north minus south": (halves[0][0] - halves[1][0], halves[0][1] & halves[1][1], whole),
        "east minus west": (halves[2][0] - halves[3][0], halves[2][1] & halves[3][1], whole),
        "change": (change, changed, whole),
        "valid share": (share, torch.ones_like(any_valid), whole),
    }
    values = torch.stack([table[name][0] for name in STATISTICS], dim=-1)
    known = torch.stack([table[name][1] for name in STATISTICS], dim=-1)
    found_at = (
        torch.stack([table[name][2][0] for name in STATISTICS], dim=-1),
        torch.stack([table[name][2][1] for name in STATISTICS], dim=-1),
    )
    return values.masked_fill(~known, 0.0), known, found_at


def _first_and_last(fields: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Take the first time and the valid time, which stands before the padding of a shorter history.

    Returns:
        Fields and mask, [B, 1 or 2, V, H, W]; of a window with a single time the first is all masked.
    """
    if time.shape[1] == 1:
        return fields, mask
    last = (time == time[:, -1:]).int().argmax(dim=1)  # [B]; the first of equal times
    rows = torch.arange(len(time), device=time.device)
    several = (last > 0)[:, None, None, None]
    return (
        torch.stack([fields[:, 0], fields[rows, last]], dim=1),
        torch.stack([mask[:, 0] & several, mask[rows, last]], dim=1),
    )


def _mean(fields: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean over cells [B, V], and where there is any weight."""
    total = weight.sum(dim=(-2, -1))  # [B, V]
    share = weight / total.clamp(min=1e-12)[..., None, None]
    rough = (fields * share).sum(dim=(-2, -1))
    # About 1000 hPa in float32: the mean of what is left over brings back what the first sum rounded away.
    mean = rough + ((fields - rough[..., None, None]) * share).sum(dim=(-2, -1))
    return mean, (total > 0).expand_as(mean)


def _position(coordinate: Tensor) -> Tensor:
    """Place of each column in its box, from -1 (first) to 1 (last), NaN in padding; [B, N]."""
    real = fresh(coordinate)
    last = real.sum(dim=1, keepdim=True).clamp(min=2) - 1
    index = torch.arange(coordinate.shape[1], device=coordinate.device)
    position = 2 * index / last - 1
    return position.masked_fill(~real, torch.nan)
