"""Where in the fields an answer comes from: where its words looked, and what it needs.

Two views of one answer, or of one fact of it, both of the tokens that carry the fact (`value_tokens`):

- Attention: how much the states that said these tokens looked at each climate token, mean over heads and sites,
  spread over the cells that the token stands for. It is there only for fusions whose words look each for itself
  (`Fusion.attention`). A weight says where a word looked, not that it used what it saw.
- Occlusion: how much less probable these tokens are once a region, a variable or a time is hidden. It asks the whole
  model, whatever its encoder and fusion: a causal test, and the one to believe where the two differ. What an
  encoder's statistic of the whole box hands to the words is traced back to cells by this alone.

Whether either points at the right place is tested in `pointing`.

References:
    Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, arXiv:1311.2901, section 4.2;
    Jain and Wallace 2019, Attention is not Explanation, arXiv:1902.10186.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from climafuse.climate_tokens import ClimateTokens
from climafuse.data.times import days_since_epoch
from climafuse.data.window import EDGE, Window
from climafuse.errors import UsageError
from climafuse.evaluation.value_tokens import value_tokens
from climafuse.facts import Fact
from climafuse.model.inference import Reader, attended_tokens
from climafuse.model.modeling import CLIMATE_INPUTS
from climafuse.model.rows import stack_rows
from climafuse.model.scoring import token_scores

VIEWS = 32  # of a window that are encoded together
FILLS = ("mean", "surroundings", "climatology", "missing")


@dataclass(frozen=True, eq=False)
class Attention:
    """Where the words that carry a fact looked.

    Args:
        share: [T, H, W] share of all attention on each cell of the window.
        whole_box: Share on climate tokens about no place, such as a mean; with `share` it sums to one.
        tokens: (description, share) of the climate tokens that have one, largest first.
    """

    share: np.ndarray
    whole_box: float
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What the words that carry a fact need.

    Args:
        drop: [H, W] by how much their log-probability falls (nats) when a region around a cell is hidden, mean over
            the regions that cover it; negative where hiding makes them more probable.
        by_variable: The same for a variable hidden everywhere.
        by_step: [T] the same for a time hidden everywhere.
        log_probability: Of the words with nothing hidden, nats.
        num_views: How many views of the window were encoded, which is what it costs.
    """

    drop: np.ndarray
    by_variable: dict[str, float]
    by_step: np.ndarray
    log_probability: float
    num_views: int


def attention(
    reader: Reader, window: Window, prompt: str, answer: str, fact: Fact | None = None
) -> Attention | None:
    """Find where the words that carry a fact looked.

    Args:
        reader: Model and processor.
        window: The fields.
        prompt: The question.
        answer: The answer.
        fact: The fact of the answer to look at; None for all of its words.

    Returns:
        The attention; None where no fusion of the model attends.
    """
    _, words = value_tokens(reader.processor, prompt, answer, fact)
    found = attended_tokens(reader, window, prompt, answer, words=words)
    if found is None:
        return None
    tokens, weights = found
    share, whole_box = spread(tokens, weights, window)
    order = np.argsort(weights)[::-1].tolist() if tokens.labels else []
    named = tuple((tokens.labels[i], float(weights[i])) for i in order if weights[i] > 0)
    return Attention(share, whole_box, named)


def spread(tokens: ClimateTokens, weights: np.ndarray, window: Window) -> tuple[np.ndarray, float]:
    """Spread the weight of each climate token evenly over the cells it is about.

    Args:
        tokens: Of one window, B = 1.
        weights: [M].
        window: The window, whose grid is filled.

    Returns:
        [T, H, W], and the weight of the tokens about no place. A token about a point goes to the nearest cell.
    """
    size = len(window.time), len(window.latitude), len(window.longitude)
    share, whole_box = np.zeros(size), 0.0
    latitude, longitude, time = (
        tensor[0].cpu().double().numpy() for tensor in (tokens.latitude, tokens.longitude, tokens.time)
    )
    extent = np.zeros((len(weights), 2))
    if tokens.extent is not None:
        extent = tokens.extent[0].cpu().double().numpy()
    days = days_since_epoch(window.time)
    for index, weight in enumerate(weights.tolist()):
        if not (np.isfinite(latitude[index]) and np.isfinite(longitude[index])):
            whole_box += weight
            continue
        step = np.abs(days - time[index]).argmin()
        turn = (window.longitude - longitude[index] + 180) % 360 - 180
        rows = _covered(window.latitude - latitude[index], extent[index, 0])
        columns = _covered(turn, extent[index, 1])
        share[np.ix_([step], rows, columns)] += weight / (len(rows) * len(columns))
    return share, whole_box


def _covered(distance: np.ndarray, extent: float) -> np.ndarray:
    """Which cells lie within half an extent, the nearest in any case."""
    near = np.flatnonzero(np.abs(distance) <= extent / 2 - EDGE)
    return near if len(near) else np.array([np.abs(distance).argmin()])


def occlusion(
    reader: Reader,
    window: Window,
    prompt: str,
    answer: str,
    fact: Fact | None = None,
    *,
    fill: str = "mean",
    sizes: Sequence[int] | None = None,
) -> Occlusion:
    """Hide regions, variables and times one by one, and see how much less probable the words of a fact become.

    All variables and times of a region are hidden together. Regions of each size slide over the window by half their
    size; the map is the mean over the sizes. One encoding of the window a region is what it costs: of 16 by 16 cells,
    sizes 8 and 4 are 9 + 49, size 2 is 225. The states of the text below the first fusion are computed once.

    Args:
        reader: Model and processor.
        window: The fields.
        prompt: The question.
        answer: The answer.
        fact: The fact of the answer to look at; None for all of its words.
        fill: What stands in hidden cells. "mean": the mean of the same variable and time over what is not hidden;
            where nothing is left (a whole variable), that of the training times. "surroundings": the mean over a rim
            around the region as wide as half of it. "climatology": the mean of the training times. "missing": nothing,
            which the model may answer by saying that there is none.
        sizes: Sides of regions in cells, from coarse to fine; None for half and a quarter of the shorter side. A
            signal that is spread wider than a region survives its hiding: one coarse size belongs among them.

    Returns:
        The occlusion.

    Raises:
        UsageError: The fill is unknown, or a size is not from 1 to the side of the window.
    """
    _, _, height, width = window.fields.shape
    sizes = check_hiding(window, fill, sizes)
    tokens, words = value_tokens(reader.processor, prompt, answer, fact)
    names = reader.model.config.variables
    steps, variables = len(window.time), len(names)
    regions = [part for size in sizes for part in _regions(height, width, size)]
    num_views = 1 + len(regions) + variables + steps
    hidden = torch.zeros(num_views, steps, variables, height, width, dtype=torch.bool)
    for view, (row, column, size) in enumerate(regions, 1):
        hidden[view, :, :, row : row + size, column : column + size] = True
    for index in range(variables):
        hidden[1 + len(regions) + index, :, index] = True
    for index in range(steps):
        hidden[1 + len(regions) + variables + index, index] = True
    values = log_probabilities(reader, window, tokens, words, hidden, fill)
    drops = values[0] - values[1:]
    at_regions, at_variables, at_steps = np.split(drops, [len(regions), len(regions) + variables])
    maps = np.zeros((len(sizes), height, width))
    counts = np.zeros_like(maps)
    for (row, column, size), drop in zip(regions, at_regions, strict=True):
        part = sizes.index(size), slice(row, row + size), slice(column, column + size)
        maps[part] += drop
        counts[part] += 1
    return Occlusion(
        drop=(maps / counts).mean(axis=0),
        by_variable={
            name: float(drop)
            for name, drop in zip(names, at_variables, strict=True)
            if name in window.variables
        },
        by_step=at_steps,
        log_probability=float(values[0]),
        num_views=num_views,
    )


def check_hiding(window: Window, fill: str, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """How a window shall be hidden, checked.

    Args:
        window: The fields.
        fill: See `occlusion`.
        sizes: See `occlusion`.

    Returns:
        Sides of regions, each once.

    Raises:
        UsageError: The fill is unknown, or a size is not from 1 to the side of the window.
    """
    if fill not in FILLS:
        raise UsageError("fill", expected=" or ".join(FILLS), received=fill, remedy="Choose one of these.")
    shorter = min(window.fields.shape[-2:])
    if sizes is None:
        sizes = (max(shorter // 2, 1), max(shorter // 4, 1))
    if not sizes or any(not 1 <= size <= shorter for size in sizes):
        raise UsageError(
            "sizes",
            expected=f"sides of regions from 1 to {shorter} cells",
            received=str(tuple(sizes)),
            remedy="Choose sides within the window.",
        )
    return tuple(dict.fromkeys(int(size) for size in sizes))


def _regions(height: int, width: int, size: int) -> Iterator[tuple[int, int, int]]:
    """First row, first column and side of squares that slide by half their side and end flush with the window."""
    stride = max(size // 2, 1)
    for row in dict.fromkeys([*range(0, height - size, stride), height - size]):
        for column in dict.fromkeys([*range(0, width - size, stride), width - size]):
            yield row, column, size


@torch.no_grad()
def log_probabilities(
    reader: Reader, window: Window, tokens: Sequence[int], words: Sequence[int], hidden: Tensor, fill: str
) -> np.ndarray:
    """Log-probability of some tokens of one text, under views of its window with parts hidden.

    Args:
        reader: Model and processor.
        window: The fields.
        tokens: Of prompt and answer.
        words: Positions of the tokens in question, ascending.
        hidden: [N, T, V, H, W] bool, what each view hides.
        fill: See `occlusion`.

    Returns:
        [N] sum over the tokens, nats.
    """
    model = reader.model.eval()
    batch = reader.tensors(reader.processor([window]))
    views = []
    for part in hidden.split(VIEWS):
        fields, mask = hide(
            batch["climate_fields"],
            batch["climate_mask"],
            batch["climate_latitude"],
            part.to(model.backbone.device),
            fill,
        )
        where = (batch[name].expand(len(part), -1) for name in CLIMATE_INPUTS[2:])
        views.append(model.encode_climate(fields, mask, *where))
    text = tuple(tokens[: words[-1] + 1]), words[0]  # what comes after the last word is not asked for
    scores = token_scores(model, [text] * len(hidden), stack_rows(views), range(len(hidden)))
    places = np.array(words) - words[0]
    return np.array([found[places].sum() for found, _ in scores])


def hide(fields: Tensor, mask: Tensor, latitude: Tensor, hidden: Tensor, fill: str) -> tuple[Tensor, Tensor]:
    """Views of one window with parts hidden.

    Args:
        fields: [1, T, V, H, W] normalized, 0 where missing.
        mask: [1, T, V, H, W] bool, True where valid.
        latitude: [1, H] degrees north.
        hidden: [N, T, V, H, W] bool.
        fill: See `occlusion`.

    Returns:
        Fields and mask, [N, T, V, H, W]. What is missing stays missing.
    """
    covered = hidden & mask
    if fill == "missing":
        return fields.masked_fill(covered, 0.0), mask & ~hidden
    mask = mask.expand_as(hidden)
    if fill == "climatology":
        return fields.masked_fill(covered, 0.0), mask
    weight = torch.cos(torch.deg2rad(latitude)).clamp(min=1e-6)[:, None, None, :, None]
    seen = (mask & ~hidden) * weight  # [N, T, V, H, W]
    if fill == "surroundings":
        seen = torch.where(
            _rim(hidden) & (seen > 0), seen, 1e-9 * seen
        )  # where there is no rim, all that is left
    total = seen.sum(dim=(-2, -1), keepdim=True)
    mean = (fields * seen).sum(dim=(-2, -1), keepdim=True) / total.clamp(min=torch.finfo(seen.dtype).tiny)
    return torch.where(covered, mean, fields), mask


def _rim(hidden: Tensor) -> Tensor:
    """Cells within half a region's height around it, [N, T, V, H, W] bool; each of the N has its own."""
    sides = hidden.sum(dim=-2).flatten(1).amax(dim=1)  # [N]
    near = torch.zeros_like(hidden)
    for side in sides.unique().tolist():
        alike = hidden[sides == side]
        reach = max(side // 2, 1)
        flat = alike.flatten(0, 2)[:, None].float()  # [N T V, 1, H, W]
        near[sides == side] = (functional.max_pool2d(flat, 2 * reach + 1, 1, reach) > 0).view_as(alike)
    return near & ~hidden
