"""One picture of where a fact comes from: the field, where the words looked, and what they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from climafuse.data.window import Window
from climafuse.evaluation.attribution import Attention, Occlusion
from climafuse.report.maps import Layer, draw_map

_COLORS = {True: "#2e8b57", False: "#c0392b", None: "#8a94a0"}
_VERDICTS = {True: "right", False: "wrong", None: "not to be checked"}


def attribution_layers(attention: Attention | None, occlusion: Occlusion | None) -> list[Layer]:
    """Attention and occlusion of a fact's words as panels of a map; what is None is left out."""
    layers = []
    if attention is not None:
        layers.append(
            Layer(
                "Where the words looked",
                f"share of attention; {attention.whole_box:.0%} on whole-box statistics",
                100 * attention.share.sum(axis=0),
                "%",
            )
        )
    if occlusion is not None:
        layers.append(
            Layer(
                "What the words need",
                "loss of log-probability where hidden",
                occlusion.drop,
                "nats",
                centered=bool(occlusion.drop.min() < -0.05 * occlusion.drop.max()),
            )
        )
    return layers


def draw_attribution(
    window: Window,
    variable: str | Sequence[str],
    *,
    attention: Attention | None,
    occlusion: Occlusion | None,
    path: str | Path,
    prompt: str,
    answer: str,
    right: bool | None = None,
    truth: str | None = None,
    title: str | None = None,
    place: tuple[float, float] | None = None,
    box: np.ndarray | None = None,
) -> Path:
    """Draws the field of a fact, the attention and the occlusion of its words side by side, and writes one picture.

    Args:
        window: What the model was shown.
        variable: Canonical name of the field, or several.
        attention: Of the words; None for no panel.
        occlusion: Of the words; None for no panel.
        path: Where to write; the suffix chooses the format (.png, .pdf, .svg).
        prompt: The question.
        answer: The answer.
        right: Whether the fact is right; None where that cannot be told.
        truth: What the fields say.
        title: Heading.
        place: Latitude and longitude in degrees of a point to mark.
        box: [H, W] bool, a rectangle of cells to outline, such as that of a planted signal.

    Returns:
        The path.

    Raises:
        ClimafuseError: See `draw_map`.
    """
    verdict = _VERDICTS[right] if truth is None else f"{_VERDICTS[right]}: the fields say {truth}"
    return draw_map(
        window,
        variable,
        path=path,
        layers=attribution_layers(attention, occlusion),
        title=title,
        caption=f"{prompt} {answer} ({verdict})",
        caption_color=_COLORS[right],
        place=place,
        outline=box,
    )
