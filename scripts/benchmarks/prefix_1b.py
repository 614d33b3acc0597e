"""Section `prefix` for a backbone of 1.3 billion random parameters, which takes 2.6 GB of disk and 4 GB of memory."""

from __future__ import annotations

from collections.abc import Iterator

from climafuse.backbones import load_backbone
from scripts.benchmarks.inputs import backbone_of
from scripts.benchmarks.measure import Row, Size
from scripts.benchmarks.prefix import steps

ARCHITECTURE = "opt-1.3b"


def rows(size: Size) -> Iterator[Row]:
    """Measure cross-attention at two sites; the weights are written to climafuse's cache once."""
    yield from steps(
        load_backbone(backbone_of(ARCHITECTURE), dtype="bfloat16"), size, fusions=("cross_attention",)
    )
