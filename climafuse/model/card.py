"""The model card, written on every save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from climafuse.model.configuration import ClimateTextConfig


def model_card(config: ClimateTextConfig, facts: Mapping[str, Any]) -> str:
    """Write the card of a model.

    Args:
        config: Its configuration.
        facts: More to say, each as one line: what it was trained on, figures of its evaluation, ….

    Returns:
        Markdown with the metadata block of the hub.
    """
    backbone = config.backbone or {}
    weights = "random weights, for capacity only" if backbone.get("random_weights") else "pretrained"
    provenance = (config.statistics or {}).get("provenance", {})
    lines = [
        "---",
        "library_name: climafuse",
        "tags: [climate, multimodal]",
        "---",
        "",
        "# A climate-text model",
        "",
        "A frozen language model that reads climate fields, made with climafuse. This folder holds the trained",
        "encoder and fusion only; the backbone is loaded by its id and checked by its hash.",
        "",
        f"- Backbone: {backbone.get('id')} ({backbone.get('architecture')}, "
        f"{backbone.get('num_parameters', 0):,} parameters, frozen, {weights}), {backbone.get('content_hash')}",
        f"- Fusion: {config.fusion} at {config.sites}",
        f"- Encoder: {config.encoder}, windows of {config.history} times, boxes of {config.box_degrees:g}°",
        f"- Variables: {', '.join(config.variables)}",
        f"- Statistics from: {provenance.get('source')}, {provenance.get('first_time')} to "
        f"{provenance.get('last_time')}",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "Answers are statements about the fields given, not forecasts. Check them: `climafuse infer` prints the",
        "same facts computed from the fields beside them.",
        "",
    ]
    return "\n".join(lines)
