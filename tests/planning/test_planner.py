"""Whether it fits, how much would, and what to change: of counts that are known (`tiny_workload.counted`)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from climafuse.errors import MemoryPlanError
from climafuse.planning import Device, device, measure, plan, planner
from climafuse.planning.planner import CUDA_CONTEXT, phases
from climafuse.planning.probe import USUAL_SHARE, estimate_pace
from tests.planning.tiny_workload import counted, workload

BASE = 1_000_000
LARGE = Device("large", 10**12)
# Two windows of ten tokens: weights, moments, gradients and the step.
HELD = BASE + 2_000_000 + 200_000 + 400_000 + 200_000 + 20_000


@pytest.fixture
def _counted(monkeypatch):
    monkeypatch.setattr(planner, "measure", counted)


@pytest.mark.usefixtures("_counted")
def test_the_peak_is_the_largest_phase_and_the_sum_of_its_parts():
    found = plan(workload(evaluation_windows=3), LARGE, base=BASE, time=False)
    assert found.phases == {
        "loading": BASE + 2_000_000,
        "training": HELD,
        "evaluation": HELD - 200_000 - 20_000 + 15_000,
        "saving": HELD - 200_000 - 20_000,
    }
    assert (found.peak, found.peak_phase) == (HELD, "training")
    assert found.fits
    found.require()
    assert found.changes == ()


def test_what_is_trained_in_the_backbone_is_not_to_be_quantized():
    work = workload(backbone_trainable="all", windows=8)
    found = plan(work, Device("small", 1_000_000), base=0, time=False, search=False)
    assert not found.fits
    assert found.changes
    assert not any("quantization" in setting for change in found.changes for setting in change.settings)


def test_soft_tokens_take_positions_from_texts():
    work = workload(fusion="prefix", sites="input", fusion_options={"length": 6}, length=64)
    assert plan(work, LARGE, base=BASE, time=False).largest_length == 256 - 6


def test_what_is_spread_is_gathered_to_be_saved():
    """Of 0.4 MB of moments a process has 0.1 and gathers all; of 2.2 MB of weights those that are trained, 0.2."""
    for spread, held in (
        ("moments", 2_200_000 + 250_000 + 100_000 + 400_000),
        ("weights", 550_000 + 300_000 + 100_000 + 400_000 + 200_000),
    ):
        work = workload(group=4, spread=spread)
        assert phases(work, counted(work), BASE, LARGE)["saving"] == BASE + held


def test_processes_of_a_machine_share_what_is_mapped():
    """Weights of 2 MB mapped from a file, of which 0.4 MB are never read, are there once for four processes."""
    work = workload(processes=4)
    mapped = replace(counted(work), mapped_bytes=2_000_000, untouched_bytes=400_000)
    alone = phases(replace(work, processes=1), mapped, BASE, LARGE)
    shared = phases(work, mapped, BASE, LARGE)
    assert alone["training"] == HELD - 400_000
    assert shared["training"] == HELD - 400_000 - 1_600_000 * 3 // 4
    assert shared["loading"] == alone["loading"] == BASE
    gpu = replace(LARGE, gpu=True)
    assert phases(work, mapped, BASE, gpu) == phases(replace(work, processes=1), mapped, BASE, gpu)


@pytest.mark.usefixtures("_counted")
@pytest.mark.parametrize("windows", [1, 2, 6])
def test_the_largest_microbatch_and_length_by_hand(windows):
    room = 3_800_000 + 123_456  # beside what does not depend on either: 123 windows' tokens of 1000 bytes
    found = plan(workload(windows=windows), Device("small", room), base=BASE, time=False)
    assert found.largest_microbatch == 12
    assert found.largest_length == min(123 // windows, 256)


@pytest.mark.parametrize(
    "held",
    [
        lambda n: 1000 + 10 * n,
        lambda n: 1000 + n + n * n // 50,
        lambda n: 1000 + int(400 * n**0.5),  # concave, as where large pieces are not kept in the heap
        lambda n: 1000 + 100 * (n // 37),
        lambda n: 1000 + (10 * n if n < 3000 else 10**6 * n),
        lambda n: 1000 + n // 1000,
    ],
)
@pytest.mark.parametrize("most", [1, 50, 1000, 10**6])
@pytest.mark.parametrize("room", [900, 1001, 2000, 11_000, 500_000])
def test_what_is_called_the_largest_was_tried_and_so_was_a_larger_one(held, most, room):
    for here in (1, 7, 400):
        tried = {here: held(here)}
        found = planner._largest(lambda n, tried=tried: held(n), tried, room, most)
        exact = max((n for n in _between(most) if held(n) <= room), default=0)
        assert exact - max(exact // 64, 1) <= found <= 1.001 * exact
        assert found == 0 or held(found) <= room
        assert found == most or any(found < n <= found + max(found // 64, 1) for n in tried)
        assert len(tried) < 40  # of a staircase; of a line five


def _between(most):
    """All numbers up to 20,000, and then such as are close enough together."""
    yield from range(1, min(most, 20_000) + 1)
    number = 20_000.0
    while number < most:
        number *= 1.0005
        yield min(int(number), most)


def test_cutting_a_step_counts_the_gradients_that_are_held_meanwhile(monkeypatch):
    """Two microbatches hold 100 kB more than one of as many windows: 2 of 12 windows fit, where 3 would alone."""

    def held(work, **options):
        more = 100_000 if work.accumulation > 1 else 0
        return replace(counted(work), step_bytes=counted(work).step_bytes + more)

    monkeypatch.setattr(planner, "measure", held)
    work = workload(windows=12, length=100)
    room = Device("small", 3_800_000 + 3 * 100_000 + 90_000)
    made = plan(work, room, base=BASE, time=False, search=False)
    assert planner.fitting_microbatch(work, made) == 2
    assert "training.accumulation=6" in made.changes[0].settings
    assert planner.fitting_microbatch(work, replace(made, device=Device("none", 3_800_000))) == 0


@pytest.mark.usefixtures("_counted")
def test_what_is_spread_over_processes_is_held_in_parts():
    """Of 2.2 MB of weights, 0.2 of gradients and 0.4 of moments; 0.3 are gathered, a step holds 0.02."""
    step = 20_000
    expected = {
        None: 2_200_000 + 200_000 + 400_000,
        "weights": 550_000 + 300_000 + 50_000 + 100_000,
        "gradients": 2_200_000 + (50_000 + 200_000 + 50_000) + 100_000,
        "moments": 2_200_000 + (200_000 + 200_000 + 50_000) + 100_000,
    }
    for spread, held in expected.items():
        work = workload(group=4, spread=spread)
        assert phases(work, counted(work), BASE, LARGE)["training"] == BASE + held + step
    alone, several = workload(evaluation_windows=1), workload(evaluation_windows=1, group=2)
    difference = [phases(work, counted(work), BASE, LARGE)["evaluation"] for work in (several, alone)]
    assert difference[0] - difference[1] == 200_000  # the buckets of gradients stay


@pytest.mark.parametrize("memory", [1, 1_000_000])
def test_of_real_counts_nothing_fits_into_too_little(memory):
    found = plan(workload(length=4), Device("small", memory), base=BASE, time=False)
    assert (found.largest_microbatch, found.largest_length) == (0, 0)


def test_weights_that_are_spread_were_never_whole_on_a_gpu():
    work = replace(workload(group=4, spread="weights", sampled_vocabulary=50, reuse_prefix=True))
    gpu = replace(LARGE, gpu=True)
    found = phases(work, replace(counted(work), storing_bytes=10**9, vocabulary_bytes=10**9), BASE, gpu)
    assert set(found) == {"loading", "training", "saving"}
    assert found["loading"] == 550_000 + 300_000
    assert found["saving"] == BASE + 550_000 + 300_000 + 100_000


def test_gradients_of_several_processes_have_their_place_while_activations_are_held():
    """4 MB of activations, of which a step holds 3 beside gradients that come as they go."""
    for accumulation, own in (
        (1, 0),
        (2, 200_000),
    ):  # all but the last microbatch leave gradients of their own
        work = workload(windows=4, group=2, accumulation=accumulation)
        held = replace(counted(work), activation_bytes=4_000_000, step_bytes=3_000_000)
        assert phases(work, held, BASE, LARGE)["training"] == BASE + 2_200_000 + 600_000 + 4_000_000 + own


@pytest.mark.usefixtures("_counted")
def test_nothing_fits_into_too_little():
    found = plan(workload(), Device("small", 3_800_000), base=BASE, time=False)
    assert (found.largest_microbatch, found.largest_length) == (0, 0)


@pytest.mark.usefixtures("_counted")
def test_texts_are_no_longer_than_the_backbone_reads():
    assert plan(workload(), LARGE, base=BASE, time=False).largest_length == 256


@pytest.mark.usefixtures("_counted")
def test_what_does_not_fit_is_refused_with_what_to_change_first():
    work = workload(windows=800, evaluation_windows=10)  # 8 MB of activations
    small = Device("small", 9_000_000)
    found = plan(work, small, base=BASE, time=False, search=False)
    assert not found.fits
    assert found.peak == 3_800_000 + 8_000_000
    # 520 windows would fit: 400 is the largest divisor. Activations anew save the half.
    assert [(change.settings[0], change.saving, change.fits) for change in found.changes] == [
        ("training.accumulation=2", 4_000_000, True),
        ("training.checkpoint_activations=true", 4_000_000, True),
        ("backbone.quantization=int8", 1_000_000, False),
        ("backbone.quantization=int4", 1_500_000, False),
    ]
    with pytest.raises(MemoryPlanError) as refused:
        found.require()
    error = refused.value
    assert error.exit_code == 1
    assert "training.accumulation=2" in error.remedy
    assert "check_memory=false" in error.remedy
    assert error.expected == "at most 0.01 GB, which small has free"
    assert "0.01 GB in training (weights" in str(error.received)
    with pytest.raises(MemoryPlanError, match="of a backbone of random weights"):
        replace(found, random_weights=True).require()
    assert found.advice == "What to change"
    hopeless = replace(found, changes=found.changes[2:])
    assert "none of it is enough by itself" in hopeless.advice
    hopeless = replace(found, base=small.memory)
    assert "no change of the run is enough" in hopeless.advice
    with pytest.raises(MemoryPlanError, match=r"process and libraries alone take 0\.01 GB"):
        hopeless.require()


@pytest.mark.usefixtures("_counted")
def test_a_gpu_holds_no_libraries_and_its_times_are_called_estimates():
    gpu = device("A100-40")
    found = plan(workload(), gpu, base=BASE, search=False)
    assert found.base == CUDA_CONTEXT
    assert found.to_dict()["times_are"] == "estimates"
    json.dumps(found.to_dict(), default=str)
    # In float32: 73 operations; all blocks are read forward, two of four backward; kernels of four blocks.
    products, weights = 73 / (USUAL_SHARE * 19.5e12), 6 / 4 * 2_000_000 / 1555e9
    optimizer = 7 * 200_000 / 1555e9
    assert found.pace.seconds == pytest.approx(max(products, weights, 4 * 60 * 10e-6) + optimizer)
    assert found.pace.estimated
    assert estimate_pace(workload(), found.footprint, Device("unknown", 10**10, gpu=True)) is None


@pytest.mark.usefixtures("_counted")
def test_random_weights_are_called_so():
    found = plan(replace(workload(), random_weights=True), LARGE, base=BASE, time=False, search=False)
    assert "random weights" in found.line
    assert found.to_dict()["random_weights"]


def test_states_that_do_not_fit_into_memory_are_on_the_disk():
    work = workload(reuse_prefix=True, stored_tokens=10**6)
    in_memory = phases(work, counted(work), BASE, LARGE)["training"]
    for other, where in ((work, Device("small", 10**8)), (replace(work, store_limit=0), LARGE)):
        assert in_memory - phases(other, counted(other), BASE, where)["training"] == 64 * 10**6
    some = replace(work, store_limit=10**6, store_spills=False)  # the rest is computed each time
    assert in_memory - phases(some, counted(some), BASE, LARGE)["training"] == 63 * 10**6


def test_to_quantize_takes_a_part_of_a_matrix_more_than_what_comes_of_it():
    work = workload(quantization="int8")
    assert phases(work, counted(work), BASE, LARGE)["loading"] == BASE + 1_000_000 + 70_000


def test_loading_another_type_holds_both():
    work = workload(file_dtype="bfloat16", file_bytes=12_345)
    assert phases(work, counted(work), BASE, LARGE)["loading"] == BASE + 2_000_000 + 12_345
    same = replace(work, file_dtype="float32")
    mapped = replace(counted(same), mapped_bytes=2_000_000)
    assert phases(same, mapped, BASE, LARGE)["loading"] == BASE  # nothing of the mapped file has been read


@pytest.mark.slow
def test_of_real_counts_the_largest_fit_and_larger_ones_do_not():
    work = workload()
    needed = plan(work, LARGE, base=BASE, time=False, search=False).peak
    room = Device("small", round(needed * 1.4))
    found = plan(work, room, base=BASE, time=False)

    def held(**changes):
        other = replace(work, **changes)
        return phases(other, measure(other, phases=False), BASE, room)["training"]

    assert found.largest_microbatch > 2
    assert held(windows=found.largest_microbatch) <= room.memory < held(windows=found.largest_microbatch + 2)
    assert found.largest_length > 10
    assert held(length=found.largest_length - 1) <= room.memory < held(length=found.largest_length + 3)
