"""What reading climate costs in generation.

Both sides answer the same prompts greedily with the same number of new tokens. The measured side begins with fields:
the encoder runs, keys and values are made, and every step is fused. The bare side is the backbone's own `generate`,
helped as climafuse helps itself: with `dense_input`, without which a batch takes up to twice as long. Gates are zero,
so both must say the same: it is checked that they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from climafuse.backbones import LoadedBackbone, Site, find_blocks
from climafuse.backbones.head import dense_input
from climafuse.model import ClimateTextForCausalLM, ClimateTextProcessor
from scripts.benchmarks.inputs import backbone, store, windows
from scripts.benchmarks.measure import Row, Size, compare, quartiles

AIM = 0.90
BATCHES = (1, 8)
PROMPTS = (
    "What is the mean temperature?",
    "How strong is the wind, and where does it come from?",
    "What is the lowest pressure?",
    "Describe the weather.",
    "Where is it warmest?",
    "Is the north warmer than the south?",
    "How did the pressure change?",
    "What is the highest wind speed?",
)
MEANING = "tokens/s of fused generation, encoding included ÷ tokens/s of the bare backbone"


def rows(size: Size) -> Iterator[Row]:
    """Measure both fusions at the output, and cross-attention in the middle, with one prompt and with eight."""
    loaded = backbone(size.backbone)
    middle = find_blocks(loaded.model).num_blocks // 2
    cases: tuple[tuple[str, Site], ...] = (
        ("gated_addition", "output"),
        ("cross_attention", "output"),
        ("cross_attention", middle),
    )
    for fusion, site in cases:
        for batch in BATCHES:
            yield row(size, loaded, fusion, site, batch)


def row(size: Size, loaded: LoadedBackbone, fusion: str, site: Site, batch: int, **options_: Any) -> Row:
    """Measure one fusion at one site.

    Args:
        size: How much.
        loaded: The backbone.
        fusion: Registered name.
        site: Where it sits.
        batch: How many prompts are answered at a time.
        **options_: Of the fusion.
    """
    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        loaded, statistics=store().statistics, fusion=fusion, sites=[site], fusion_options=options_
    ).eval()
    processor = ClimateTextProcessor.of(model.config, loaded.tokenizer)
    inputs = dict(processor(windows(batch), PROMPTS[:batch]))
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {
        "do_sample": False,
        "min_new_tokens": size.new_tokens,
        "max_new_tokens": size.new_tokens,
        "pad_token_id": loaded.tokenizer.pad_token_id,
    }

    def fused() -> Any:
        return model.generate(**inputs, **options)

    def bare() -> Any:
        with dense_input(loaded.model):
            return cast("Any", loaded.model).generate(**text, **options)

    if not torch.equal(fused(), bare()):
        raise RuntimeError("with gates of zero the model does not say what its backbone says")
    found = compare(fused, bare, repeats=size.repeats, warmup=size.warmup)
    speeds = found.inverse()
    place = site if isinstance(site, str) else f"block {site}"
    return Row(
        section="generate",
        case=f"{fusion} at {place}, batch {batch}",
        ratio=1 / found.ratio,
        spread=quartiles(speeds),
        aim=f">= {AIM:.2f}",
        reached=1 / found.ratio >= AIM,
        seconds=found.seconds,
        reference_seconds=found.reference_seconds,
        rate=batch * size.new_tokens / found.seconds,
        unit="tokens/s",
        peak_gb=found.peak_gb,
        repeats=size.repeats,
        meaning=MEANING,
    )
