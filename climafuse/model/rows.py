"""Which window each text is about: rows of climate tokens for rows, beams and single positions of text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import ModelInputError
from climafuse.fusion import Fusion


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
    )


def expand_rows(climate: ClimateTokens, rows: int) -> ClimateTokens:
    """Repeat each row of climate tokens for its beams, as transformers repeats the text.

    Raises:
        ModelInputError: The number of rows is no multiple.
    """
    batch = len(climate.states)
    if rows == batch:
        return climate
    if rows % batch:
        raise ModelInputError(
            "input_ids",
            expected=f"a multiple of {batch} texts, as many as windows",
            received=rows,
            remedy="Give climate_index to say which window each text is about.",
        )
    index = torch.arange(batch, device=climate.states.device).repeat_interleave(rows // batch)
    return select_rows(climate, index)


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
    elif index.shape != (num_texts,) or int(index.min()) < 0 or int(index.max()) >= num_windows:
        raise ModelInputError(
            "climate_index",
            expected=f"{num_texts} numbers from 0 to {num_windows - 1}",
            received=f"shape {tuple(index.shape)}, from {int(index.min())} to {int(index.max())}",
            remedy="Make it with ClimateTextProcessor.",
        )
