"""Every fusion with small options: the one list that a new fusion is added to."""

from __future__ import annotations

from typing import Any

import torch

from climafuse.fusion import Fusion
from climafuse.registry import FUSIONS

# Registered name, and a word more where one fusion is tried in several ways -> options. All contracts of fusions run
# over these: tests/fusion/test_fusion.py alone, tests/matrix/test_fusion.py in every language model.
SMALL: dict[str, dict[str, Any]] = {
    "cross_attention": {"heads": 2, "head_width": 8, "feed_forward": 32},
    "cross_attention alone": {"heads": 2, "head_width": 7, "feed_forward": 0},
    "film": {"queries": 2, "feed_forward": 32},
    "gated_addition": {"queries": 2, "feed_forward": 32},
    "prefix": {"length": 4, "heads": 2, "head_width": 8, "feed_forward": 32},
}


def changes_text(name: str) -> bool:
    """Whether a fusion of the list changes the states of the text, at any site, or puts states before them."""
    return small_fusion(name, 8, 8).num_soft_tokens == 0


def small_fusion(name: str, hidden_size: int, climate_width: int, *, gates: float = 0.5) -> Fusion:
    """A fusion of the list, its gates opened so far that climate changes the text."""
    torch.manual_seed(4)
    fusion: Fusion = FUSIONS.create(name.split()[0], hidden_size, climate_width, **SMALL[name])
    open_gates(fusion, gates)
    return fusion.eval()


@torch.no_grad()
def open_gates(module: torch.nn.Module, size: float) -> None:
    """Set all gates, which start at zero, to random numbers of a size."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in module.named_parameters():
        if name.endswith("gate"):
            assert not parameter.any()
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
