"""Times of parts, counted."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from climafuse.backbones import find_blocks
from climafuse.planning import measure
from climafuse.planning import probe as probe_module
from climafuse.planning.probe import ABOVE, AROUND, BELOW, TRAINED, Probe, probed_windows
from tests.files import small_files
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


def test_of_a_large_microbatch_some_windows_are_timed(monkeypatch):
    work = workload(windows=12, accumulation=1, sites=[1], texts_per_window=3, length=10)
    footprint = replace(counted(work), blocks_below=1, sites=("1",))
    assert probed_windows(work, footprint) == 12
    text = work.config.get_text_config()
    parameters = (footprint.frozen - text.vocab_size * text.hidden_size) // BLOCKS
    monkeypatch.setattr(probe_module, "LEAST_POSITIONS", 0)
    # Forward and back, a block takes four operations a weight and position: 130 positions are 4 windows of 30.
    monkeypatch.setattr(probe_module, "ROUND_OPERATIONS", 4 * parameters * 130)
    assert probed_windows(work, footprint) == 4
    probe = Probe(work, footprint)
    assert probe.batch["input_ids"].shape == (12, 10)
    assert find_blocks(probe.model.backbone).num_blocks == 1
    found = probe.round()
    pace = probe.pace([found])
    counts = {ABOVE: 3 * 3, BELOW: 3, AROUND: 3, "fusion": 3, "encoder": 3, "head": 3}
    for name, count in counts.items():
        assert pace.parts[name] == pytest.approx(count * found[name], rel=0.01)
    monkeypatch.setattr(probe_module, "LEAST_POSITIONS", 200)
    assert probed_windows(work, footprint) == 6
    monkeypatch.setattr(probe_module, "LEAST_POSITIONS", 0)
    monkeypatch.setattr(probe_module, "ROUND_OPERATIONS", 1)
    assert probed_windows(work, footprint) == 1


def test_where_no_block_runs_all_windows_are_timed(monkeypatch):
    monkeypatch.setattr(probe_module, "ROUND_OPERATIONS", 1)
    work = workload(windows=4, sites="output", reuse_prefix=True)
    assert probed_windows(work, replace(counted(work), blocks_run=0)) == 4


@pytest.mark.parametrize(
    ("trained", "num", "frozen", "below"),
    [
        ({"lora": {"rank": 2, "layers": [3]}}, 1, 0, 3),
        ({"lora": {"rank": 2, "layers": {"every": 2}}, "sites": "input"}, 2, 2, 0),
        ({"backbone_trainable": {"last": 2}}, 2, 0, 2),
        ({"backbone_trainable": [1, 3]}, 2, 1, 1),
        ({"backbone_trainable": "all"}, BLOCKS, 0, 0),
    ],
)
def test_blocks_that_are_trained_are_timed_apart(monkeypatch, trained, num, frozen, below):
    """Of a shrunken model, whatever blocks are trained: here it has two, fewer than numbers of blocks."""
    monkeypatch.setattr(probe_module, "BLOCK_BYTES", 1)
    work = replace(workload(sites="output"), **trained)
    footprint = measure(work, phases=False)
    assert footprint.trained_blocks == num
    probe = Probe(work, footprint)
    blocks = find_blocks(probe.model.backbone)
    assert blocks.num_blocks == 1
    counts = {TRAINED: num, ABOVE: frozen, BELOW: below}
    assert {name: count for name, (_, count) in probe.parts.items() if name in counts} == {
        name: count for name, count in counts.items() if count
    }
    assert probe.parts["fusion"][1] == 1  # it sits above all blocks, or below
    requiring = {name for name, p in probe.model.named_parameters() if p.requires_grad}
    assert any("blocks" in name or "layers" in name for name in requiring)
    seen = []
    blocks.blocks[0].register_forward_hook(
        lambda module, *_: seen.append(any(p.requires_grad for p in module.parameters()))
    )
    assert sum(probe.round().values()) > 0
    for name in [name for name in probe.parts if name in counts]:
        del seen[:]
        probe.parts[name][0]()
        assert seen == [name == TRAINED]  # frozen ones are run as they were loaded
    assert {name for name, p in probe.model.named_parameters() if p.requires_grad} == requiring


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


@pytest.mark.parametrize(("processes", "expected"), [(1, 3), (4, 2), (5, 1), (100, 1)])
def test_each_of_several_processes_has_its_share_of_the_cores(processes, expected, monkeypatch):
    seen = []

    class Counting(Probe):
        def round(self):
            seen.append(torch.get_num_threads())
            return super().round()

    monkeypatch.setattr(probe_module, "Probe", Counting)
    monkeypatch.setattr(probe_module, "available_cores", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        work = workload(processes=processes)
        probe_module.probe_pace(work, counted(work), seconds=0)
        assert set(seen) == {expected}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_without_room_on_the_disk_weights_are_timed_where_they_are():
    model = torch.nn.Linear(300, 300)
    before = model.weight.detach().clone()
    with small_files():
        probe_module._map(model)
    assert torch.equal(model.weight, before)
