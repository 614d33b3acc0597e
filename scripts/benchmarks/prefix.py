"""What frozen-prefix reuse saves, beside what it could save at most.

A training step with stored states of its texts against the same step without, for a fusion at the block where the last
quarter begins and for one at the output. Most of what a step without computes is then left out, but not all: the bound
is the ratio of the floating-point operations of the two steps, as torch counts those of their matrix products and
attention while they run. For each weight and token that is 6 where it is trained, 4 where it is frozen and a gradient
passes through, 2 in frozen blocks below the first fusion, and 0 there with stored states; the head at labeled
positions, the encoder, the fusion and attention included. What is no matrix product (softmax over the vocabulary,
norms, the optimizer, the lookup itself) takes time in both steps and is in neither count.

Two more comparisons: a lookup on the disk against one in memory, and preparation where the disk holds all states
already against preparation where it holds none.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from climafuse.backbones import LoadedBackbone, Site, find_blocks
from climafuse.model import ClimateTextForCausalLM, DiskStates, PrefixStore
from scripts.benchmarks.fusion import AIMS, fused_step, site_name
from scripts.benchmarks.inputs import backbone, climate, random_texts, store
from scripts.benchmarks.measure import Comparison, Row, Size, compare, quartiles

SHARE = 0.8  # of what the count allows
LOOKUPS = 10  # that are timed together
MEANING = (
    "how many times as fast a fused training step is with stored states of its texts as without; aim: a share of the "
    "most that it could be, the count of floating-point operations without ÷ with them"
)
LOOKUP = "seconds of lookups of a batch on the disk, every checksum verified ÷ in memory"
PREPARATION = "seconds of preparation where the disk holds all states ÷ where it holds none"


def rows(size: Size) -> Iterator[Row]:
    """Measure the real backbone: both fusions at two sites, lookup, preparation."""
    loaded = backbone(size.backbone)
    yield from steps(loaded, size)
    yield from on_disk(loaded, size)


def steps(loaded: LoadedBackbone, size: Size, *, fusions: tuple[str, ...] = tuple(AIMS)) -> Iterator[Row]:
    """Measure training steps with and without stored states.

    Args:
        loaded: The backbone.
        size: How much to measure.
        fusions: Names of fusions.
    """
    vocabulary = int(loaded.model.config.vocab_size)
    batch = {**climate(size.texts), **random_texts(vocabulary, size.texts, size.tokens)}
    for site in (last_quarter(loaded), "output"):
        for fusion in fusions:
            with_states = fused_step(loaded, fusion, site, batch, reuse=True)
            without = fused_step(loaded, fusion, site, batch)
            with_states()  # what the texts are stored with is in neither count
            bound = _operations(without) / _operations(with_states)
            found = compare(with_states, without, repeats=size.repeats, warmup=size.warmup)
            speed_up = statistics.median(found.inverse())
            labeled = ", random weights" if loaded.identity["random_weights"] else ""
            yield _row(
                f"{loaded.identity['id']}{labeled}, {fusion} at {site_name(site)}",
                found,
                found.inverse(),
                (size.texts * size.tokens, "text tokens"),
                MEANING,
                aim=(f">= {SHARE * bound:.2f} ({SHARE} × {bound:.2f})", speed_up >= SHARE * bound),
                details={"bound": bound, "share_of_bound": speed_up / bound},
            )


def on_disk(loaded: LoadedBackbone, size: Size) -> Iterator[Row]:
    """Measure what the disk costs and saves, with states at the last quarter."""
    site = last_quarter(loaded)
    model = ClimateTextForCausalLM.from_backbone(
        loaded, statistics=store().statistics, fusion="gated_addition", sites=[site]
    )
    vocabulary = int(loaded.model.config.vocab_size)
    ids = random_texts(vocabulary, 8 * size.texts, size.tokens)["input_ids"]
    texts = [tuple(row) for row in ids.tolist()]
    batch = ids[: size.texts]
    mask = batch.new_ones(batch.shape)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "states")

        def prepared() -> PrefixStore:
            states = PrefixStore(
                model.backbone, site, states=DiskStates.of(model, folder=folder, limit=1 << 40)
            )
            states.add(texts)
            return states

        def cold() -> PrefixStore:
            shutil.rmtree(folder, ignore_errors=True)
            return prepared()

        cold()
        found = compare(prepared, cold, repeats=size.repeats, warmup=0)
        yield _row(
            f"preparation of {len(texts)} texts, warm disk",
            found,
            found.ratios,
            (len(texts), "texts"),
            PREPARATION,
        )
        disk, memory = prepared(), PrefixStore(model.backbone, site)
        memory.add(texts)
        found = compare(
            lambda: [disk.lookup(batch, mask) for _ in range(LOOKUPS)],
            lambda: [memory.lookup(batch, mask) for _ in range(LOOKUPS)],
            repeats=size.repeats,
            warmup=size.warmup,
        )
        yield _row(
            f"{LOOKUPS} lookups of {size.texts} texts of {size.tokens} tokens, disk",
            found,
            found.ratios,
            (LOOKUPS * size.texts * size.tokens, "tokens"),
            LOOKUP,
        )


def last_quarter(loaded: LoadedBackbone) -> Site:
    """Return the block where the last quarter of the blocks begins."""
    num_blocks = find_blocks(loaded.model).num_blocks
    return num_blocks - max(num_blocks // 4, 1)


# Torch counts neither attention on a CPU, nor a product that is added in place.
_UNCOUNTED = {
    torch.ops.aten.addmm_: lambda total, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: (
        sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


def _operations(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        step()
    return int(counter.get_total_flops())


def _row(
    case: str,
    found: Comparison,
    ratios: tuple[float, ...],
    done: tuple[int, str],
    meaning: str,
    *,
    aim: tuple[str, bool] | None = None,
    details: dict[str, float] | None = None,
) -> Row:
    number, unit = done
    return Row(
        section="prefix",
        case=case,
        ratio=statistics.median(ratios),
        spread=quartiles(ratios),
        aim=None if aim is None else aim[0],
        reached=None if aim is None else aim[1],
        seconds=found.seconds,
        reference_seconds=found.reference_seconds,
        rate=number / found.seconds,
        unit=f"{unit}/s",
        peak_gb=found.peak_gb,
        repeats=len(ratios),
        meaning=meaning,
        details=details or {},
    )
