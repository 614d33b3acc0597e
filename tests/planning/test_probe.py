"""Times of parts, counted."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from climafuse.planning import measure
from climafuse.planning.probe import ABOVE, AROUND, BELOW, Probe
from tests.planning.tiny_workload import BLOCKS, counted, workload
from tests.tiny import tiny_config


def test_a_step_is_the_sum_of_its_parts_times_how_many_there_are():
    work = workload(windows=4, accumulation=2, sites=[1, "output"])
    probe = Probe(work, replace(counted(work), blocks_below=1, sites=("1", "output")))
    rounds = [probe.round() for _ in range(3)]
    pace = probe.pace(rounds)
    assert set(pace.parts) == {"encoder", "head", "optimizer", "fusion", ABOVE, BELOW, AROUND}
    # Three of four blocks are above the first site, in each of two microbatches; two fusions.
    counts = {ABOVE: 2 * 3 / BLOCKS, BELOW: 2 / BLOCKS, AROUND: 2, "fusion": 4, "encoder": 2, "head": 2}
    for name, count in counts.items():
        assert pace.parts[name] == pytest.approx(count * statistics.median(found[name] for found in rounds))
    assert pace.seconds == pytest.approx(sum(pace.parts.values()))
    assert not pace.estimated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gpt_neo", {"sites": "output", "reuse_prefix": True}),
        ("gpt2", {"sites": "input", "quantization": "int8", "dtype": "bfloat16"}),
        ("gemma3", {"sites": "input", "fusion": "prefix", "fusion_options": {"length": 3}}),
        ("opt", {"sites": "input", "checkpoint_activations": True, "precision": "bfloat16"}),
    ],
)
def test_every_kind_of_backbone_and_fusion_can_be_timed(architecture, changes):
    work = replace(workload(), config=tiny_config(architecture), fusion_options={})
    work = replace(work, **changes)
    footprint = measure(work, phases=False)
    found = Probe(work, footprint).round()
    assert all(seconds >= 0 for seconds in found.values())
    assert sum(found.values()) > 0
    assert (ABOVE in found) == (footprint.blocks_run > 0)
