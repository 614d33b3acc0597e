"""The optimizer alone: AdamW in one fused kernel, as training uses it, against the loops of torch.

The parameters are those of a 32-head cross-attention in a backbone 4096 wide, the largest fusion of section `billions`.
Each side has parameters of its own; gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from climafuse.fusion.cross_attention import CrossAttentionFusion
from climafuse.training.config import TrainingConfig
from climafuse.training.optim import make_optimizer
from scripts.benchmarks.measure import Row, Size, compare, quartiles

MEANING = "speed of the fused AdamW that training uses ÷ of AdamW otherwise, same parameters and gradients"
WIDTHS = {"full": 4096, "quick": 1024}


def rows(size: Size) -> Iterator[Row]:
    """Compare with the loop over parameters, and with the loop over operations."""
    width = WIDTHS.get(size.name, 64)
    for name, options in (("a loop over parameters", {"foreach": False}), ("foreach", {"foreach": True})):
        fused, num_parameters = _step(width, lambda model: make_optimizer(model, TrainingConfig()))
        other, _ = _step(
            width, lambda model, options=options: torch.optim.AdamW(model.parameters(), lr=3e-3, **options)
        )
        found = compare(fused, other, repeats=size.repeats, warmup=max(size.warmup, 1))
        speeds = found.inverse()
        yield Row(
            section="optimizer",
            case=f"AdamW of {num_parameters / 1e6:.1f} M float32 parameters: fused against {name}",
            ratio=1 / found.ratio,
            spread=quartiles(speeds),
            aim=None,
            reached=None,
            seconds=found.seconds,
            reference_seconds=found.reference_seconds,
            rate=num_parameters / found.seconds / 1e9,
            unit="G parameters/s",
            peak_gb=found.peak_gb,
            repeats=size.repeats,
            meaning=MEANING,
        )


def _step(width: int, make: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[Callable[[], object], int]:
    torch.manual_seed(0)
    model = CrossAttentionFusion(width, 192, heads=32, head_width=width // 32)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return make(model).step, sum(parameter.numel() for parameter in model.parameters())
