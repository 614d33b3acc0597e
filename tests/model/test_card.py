"""The model card says what the model is, and what it is not."""

from __future__ import annotations

import yaml

from climafuse.model.card import model_card
from tests.model.build import make_model


def test_card_of_a_random_backbone():
    config = make_model("llama", history=2, box_degrees=16.0).config
    card = model_card(config, {"Trained on": "era5: 12 texts", "License of the data": "CC-BY-4.0"})
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {"library_name": "climafuse", "tags": ["climate", "multimodal"]}
    for words in (
        "tiny-llama (LlamaForCausalLM",
        "random weights, for capacity only",
        config.backbone["content_hash"],
        f"{config.backbone['num_parameters']:,} parameters",
        "Fusion: cross_attention at [1, 'output']",
        "Encoder: grid_transformer, windows of 2 times, boxes of 16°",
        "Variables: t2m, msl, ws10",
        "- Trained on: era5: 12 texts",
        "- License of the data: CC-BY-4.0",
        "not forecasts",
    ):
        assert words in body


def test_a_pretrained_backbone_is_called_so():
    config = make_model("llama").config
    config.backbone = {**config.backbone, "random_weights": False}
    card = model_card(config, {})
    assert "pretrained" in card
    assert "random weights" not in card


def test_statistics_are_told_with_their_times():
    config = make_model("llama").config
    config.statistics = {
        **config.statistics,
        "provenance": {"source": "era5.nc", "first_time": "2026-03-25", "last_time": "2026-03-28"},
    }
    assert "- Statistics from: era5.nc, 2026-03-25 to 2026-03-28" in model_card(config, {})
