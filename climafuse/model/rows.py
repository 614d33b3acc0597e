"""Which window each text is about: rows of climate tokens for rows, beams and single positions of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from climafuse.backbones import Site
from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import ModelInputError
from climafuse.fusion import Fusion


def fuse_rows(
    fusions: nn.ModuleDict, climate: ClimateTokens, index: Tensor | None
) -> Callable[[Site, Tensor], Tensor]:
    """Make the function that is attached to the sites of a backbone.

    Args:
        fusions: The fusion of each site, by its name.
        climate: B rows.
        index: [N], which window each text is about; None where texts are B or a multiple, in their order.

    Returns:
        A function of the site and its states [N, S, D].
    """
    expanded: dict[int, ClimateTokens] = {}  # the same at every site, and at every step of generation

    def fuse(site: Site, hidden: Tensor) -> Tensor:
        fusion = cast("Fusion", fusions[str(site)])
        if index is None:
            if len(hidden) not in expanded:
                expanded[len(hidden)] = expand_rows(climate, len(hidden))
            fused: Tensor = fusion(hidden, expanded[len(hidden)])
            return fused
        rows = index.unsqueeze(1).expand(hidden.shape[:2]).reshape(-1)
        return fuse_flat(fusion, hidden.flatten(0, 1), climate, rows).view_as(hidden)

    return fuse


def prompt_rows(
    fusion: Fusion, climate: ClimateTokens, index: Tensor | None, places: Tensor
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Make the function that gives a backbone what stands before each text, see `soft_prompt`.

    Args:
        fusion: A fusion of P soft tokens.
        climate: B rows.
        index: As for `fuse_rows`.
        places: [P, D], of the size of the embeddings of words.
    """

    def prompt(num_texts: int) -> tuple[Tensor, Tensor]:
        rows = repeated(len(climate.states), num_texts, climate.states.device) if index is None else index
        states = fusion(places.expand(len(climate.states), -1, -1), climate)  # once a window
        return states[rows], climate.mask.any(dim=1)[rows]

    return prompt


def fuse_flat(fusion: Fusion, states: Tensor, climate: ClimateTokens, rows: Tensor) -> Tensor:
    """Fuse single positions, each with the window it belongs to.

    Positions of one window are put side by side: keys and values are made once a window and never copied.

    Args:
        fusion: The fusion.
        states: [P, D].
        climate: B rows.
        rows: [P], which window each position belongs to.

    Returns:
        [P, D].
    """
    batch = len(climate.states)
    counts = torch.bincount(rows, minlength=batch)
    longest = int(counts.max())
    order = torch.argsort(rows, stable=True)
    start = counts.cumsum(0) - counts
    sorted_rows = rows[order]
    slot = sorted_rows * longest + torch.arange(len(rows), device=rows.device) - start[sorted_rows]
    slots = torch.empty_like(slot)
    slots[order] = slot
    padded = states.new_zeros(batch * longest, states.shape[-1]).index_copy(0, slots, states)
    fused = fusion(padded.view(batch, longest, -1), climate)
    result: Tensor = fused.flatten(0, 1)[slots]
    return result


def select_rows(climate: ClimateTokens, index: Tensor) -> ClimateTokens:
    """Take rows of climate tokens, [B, …] to [N, …]."""
    return replace(
        climate,
        memory=None if climate.memory is None else {},
        states=climate.states[index],
        mask=climate.mask[index],
        latitude=climate.latitude[index],
        longitude=climate.longitude[index],
        time=climate.time[index],
        extent=None if climate.extent is None else climate.extent[index],
    )


def stack_rows(parts: Sequence[ClimateTokens]) -> ClimateTokens:
    """Put the tokens an encoder made of several batches of windows below each other.

    Args:
        parts: One batch or more. Tokens that some have more than others are masked in these.
    """
    longest = max(part.states.shape[1] for part in parts)

    def stacked(name: str, fill: float) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        more = [(0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]) for tensor in tensors]
        return torch.cat(
            [functional.pad(tensor, pad, value=fill) for tensor, pad in zip(tensors, more, strict=True)]
        )

    return ClimateTokens(
        states=stacked("states", 0),
        mask=stacked("mask", False),
        latitude=stacked("latitude", torch.nan),
        longitude=stacked("longitude", torch.nan),
        time=stacked("time", torch.nan),
        extent=None if parts[0].extent is None else stacked("extent", 0),
    )


def expand_rows(climate: ClimateTokens, rows: int) -> ClimateTokens:
    """Repeat each row of climate tokens for its beams, as transformers repeats the text.

    Raises:
        ModelInputError: The number of rows is no multiple.
    """
    batch = len(climate.states)
    return climate if rows == batch else select_rows(climate, repeated(batch, rows, climate.states.device))


def repeated(batch: int, rows: int, device: torch.device) -> Tensor:
    """Number of the window of each of so many rows, 0 0 1 1 … for twice as many rows as windows.

    Raises:
        ModelInputError: The number of rows is no multiple.
    """
    if rows % batch:
        raise ModelInputError(
            "input_ids",
            expected=f"a multiple of {batch} texts, as many as windows",
            received=rows,
            remedy="Give climate_index to say which window each text is about.",
        )
    return torch.arange(batch, device=device).repeat_interleave(rows // batch)


def check_rows(num_texts: int, num_windows: int, index: Tensor | None) -> None:
    """Refuse texts that do not say which window they are about.

    Raises:
        ModelInputError: There is neither a window for each text nor an index that tells.
    """
    if index is None:
        if num_texts != num_windows:
            raise ModelInputError(
                "climate",
                expected=f"a window for each of {num_texts} texts",
                received=f"{num_windows} windows",
                remedy="Give climate_index to say which window each text is about.",
            )
    elif (
        index.shape != (num_texts,)
        or index.is_floating_point()
        or int(index.min()) < 0
        or int(index.max()) >= num_windows
    ):
        raise ModelInputError(
            "climate_index",
            expected=f"{num_texts} whole numbers from 0 to {num_windows - 1}",
            received=f"{index.dtype} of shape {tuple(index.shape)}, from {index.min()} to {index.max()}",
            remedy="Make it with ClimateTextProcessor.",
        )
