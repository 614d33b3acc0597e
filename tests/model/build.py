"""Small windows, statistics and models for the tests of the composite model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from climafuse.data.window import Window
from climafuse.model import ClimateTextForCausalLM, ClimateTextProcessor
from tests.fusion.small import SMALL, open_gates
from tests.tiny import tiny_backbone

VARIABLES = ("t2m", "msl", "ws10")
MEAN, STD = (281.15, 101300.0, 0.0), (10.0, 900.0, 5.0)
ENCODER = {"width": 16, "depth": 1, "heads": 2, "patch": 3}
FUSIONS = ("cross_attention", "gated_addition")  # what two of them show; tests/matrix has all
PROMPTS = ("What is the mean temperature?", "What is the wind speed and direction over there?")
ANSWERS = ("It is -8 °C.", "The wind is calm, 0 m/s.")


def statistics() -> xr.Dataset:
    return xr.Dataset(
        {
            "mean": ("variable", np.array(MEAN)),
            "std": ("variable", np.array(STD)),
            "units": ("variable", ["K", "Pa", "m s-1"]),
        },
        coords={"variable": list(VARIABLES)},
        attrs={"num_times": 3},
    )


def random_window(
    seed: int, *, height: int = 5, width: int = 6, steps: int = 1, variables: tuple[str, ...] = VARIABLES
) -> Window:
    """Weather-like noise with a missing cell."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, len(VARIABLES), height, width))
    fields = np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * noise
    fields[:, 0, 0, 0] = np.nan
    return Window(
        fields[:, [VARIABLES.index(name) for name in variables]].astype(np.float32),
        variables,
        np.datetime64("2026-03-25T12:00:00") + np.arange(steps) * np.timedelta64(1, "D"),
        30.0 + 10 * rng.integers(3) + np.arange(height),
        (350.0 + np.arange(width)) % 360,
    )


def make_model(
    architecture: str = "llama",
    *,
    sites: Any = (1, "output"),
    fusion: str = "cross_attention",
    gates: float = 0.5,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ClimateTextForCausalLM:
    """A tiny model with a backbone of its own; `gates` opens it so far that climate changes the words."""
    backbone = tiny_backbone(architecture, dtype=dtype)
    torch.manual_seed(7)
    model = ClimateTextForCausalLM.from_backbone(
        backbone,
        fusion=fusion,
        fusion_options=SMALL[fusion],
        sites=list(sites) if isinstance(sites, tuple) else sites,
        **{"statistics": statistics(), "encoder_options": ENCODER, **options},
    )
    open_gates(model.fusions, gates)
    return model.eval()


def make_processor(model: ClimateTextForCausalLM) -> ClimateTextProcessor:
    return ClimateTextProcessor.of(model.config, model.tokenizer)


def make_batch(
    model: ClimateTextForCausalLM,
    *,
    prompts: tuple[str, ...] = PROMPTS,
    answers: tuple[str, ...] | None = ANSWERS,
    index: list[int] | None = None,
    num_windows: int = 2,
) -> dict[str, Tensor]:
    windows = [random_window(seed) for seed in range(num_windows)]
    return dict(make_processor(model)(windows, prompts, answers, climate_index=index))


def climate_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in batch.items()
        if name.startswith("climate_") and name != "climate_index"
    }
