"""What a workload holds and computes, by hand and against the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from climafuse.backbones.quantization import QUANTIZING, stored_bytes
from climafuse.planning import Workload, measure
from climafuse.planning.flops import BELOW, FROZEN, HEAD, TRAINABLE
from climafuse.planning.skeleton import make_backbone, make_batch, make_model
from tests.planning.tiny_workload import BLOCKS, HIDDEN, WORDS, D, workload

# A block: queries and output D × D, keys and values D × D / 2 (2 of 4 heads), three matrices D × HIDDEN.
MATRICES = 3 * D * D + 3 * D * HIDDEN
BLOCK = MATRICES + 2 * D  # and two norms
TOKENS, LABELS = 4 * 10, 4 * 3


def held_for_backward(work: Workload) -> int:
    """Bytes that autograd of a real model saves, weights and inputs left out."""
    model = make_model(work, make_backbone(work))
    batch = make_batch(work, work.microbatch, labels=work.labels)
    known = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers(), *batch.values())
    }
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    return sum(saved.values())


@pytest.fixture(scope="module")
def plain():
    return measure(workload(evaluation_windows=3), slack=1.0)


def test_parameters_and_bytes_by_hand(plain):
    backbone = BLOCKS * BLOCK + 2 * WORDS * D + D
    assert plain.frozen == backbone
    assert plain.frozen_bytes - 4 * backbone in range(0, 200)  # buffers: frequencies of rotary positions
    model = make_model(workload(), make_backbone(workload()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plain.trainable == trained
    assert plain.trainable_bytes == plain.gradient_bytes == 4 * trained
    assert plain.optimizer_bytes == 8 * trained
    assert (plain.num_blocks, plain.blocks_below, plain.blocks_run) == (BLOCKS, 2, BLOCKS)


def test_operations_by_kind_by_hand(plain):
    assert plain.flops[BELOW] == 2 * 2 * MATRICES * TOKENS
    assert plain.flops[FROZEN] == 4 * 2 * MATRICES * TOKENS
    assert plain.flops[HEAD] == 4 * D * WORDS * LABELS
    assert plain.reused_flops == 0


def test_operations_in_all_are_those_that_torch_counts(plain):
    model = make_model(workload(), make_backbone(workload()))
    with FlopCounterMode(display=False) as counter:
        model(**make_batch(workload(), 2, labels=3)).loss.backward()
    known = sum(num for kind, num in plain.flops.items() if kind != "attention")
    counted = counter.get_total_flops()  # it does not know the attention of a CPU
    assert known <= counted <= known + plain.flops["attention"]


def test_activations_are_what_autograd_of_the_real_model_saves(plain):
    real = held_for_backward(workload())
    # The trace sees what is alive between the passes, hooks see what was saved once: nearly the same.
    assert plain.activation_bytes == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_stored_states_spare_the_blocks_below(plain):
    found = measure(workload(reuse_prefix=True, stored_tokens=1000), phases=False, slack=1.0)
    assert BELOW not in found.flops
    assert found.flops[FROZEN] == plain.flops[FROZEN]
    assert found.reused_flops - 2 * 2 * MATRICES * TOKENS == pytest.approx(
        plain.flops["attention"] / 10, rel=3
    )
    assert found.store_bytes == 1000 * D * 4
    assert found.blocks_run == 2


@pytest.mark.slow
def test_quantized_matrices_take_what_they_store():
    found = measure(workload(dtype="bfloat16", quantization="int8"), phases=False)
    shapes = [(D, D), (D // 2, D), (D // 2, D), (D, D), (HIDDEN, D), (HIDDEN, D), (D, HIDDEN)]
    rest = 2 * (BLOCKS * 2 * D + 2 * WORDS * D + D)
    blocks = BLOCKS * sum(stored_bytes(*shape, "int8") for shape in shapes)
    assert found.frozen_bytes - blocks - rest in range(0, 200)
    assert found.flops[FROZEN] == 4 * 2 * MATRICES * TOKENS
    assert found.flops[BELOW] == 2 * 2 * MATRICES * TOKENS
    assert found.buffer_bytes > 0
    assert found.quantizing_bytes == QUANTIZING


@pytest.mark.slow
def test_a_matrix_that_lies_the_other_way_round_is_read_whole_and_copied_to_quantize_it():
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=WORDS, n_embd=D, n_layer=BLOCKS, n_head=4, n_positions=64)
    work = replace(workload(dtype="bfloat16", quantization="int4"), config=config)
    assert measure(work, phases=False).quantizing_bytes == QUANTIZING + 2 * 2 * D * 4 * D
    assert measure(replace(work, quantization=None), phases=False).quantizing_bytes == 0


@pytest.mark.slow
def test_more_of_anything_takes_more_and_less_takes_less(plain):
    base = workload()
    longer = measure(replace(base, length=20), phases=False, slack=1.0)
    wider = measure(replace(base, windows=4), phases=False, slack=1.0)
    cut = measure(replace(base, windows=4, accumulation=2), phases=False, slack=1.0)
    lower = measure(replace(base, sites="input"), phases=False, slack=1.0)
    anew = measure(replace(base, sites="input", checkpoint_activations=True), phases=False, slack=1.0)
    assert plain.step_bytes < longer.step_bytes
    assert plain.step_bytes < wider.step_bytes
    # Gradients of the first microbatch are there while the second is computed, but its activations are not.
    assert (
        plain.step_bytes <= cut.step_bytes <= plain.step_bytes + plain.gradient_bytes < wider.step_bytes + 1
    )
    assert cut.flops == wider.flops
    assert plain.activation_bytes < lower.activation_bytes
    assert anew.activation_bytes < lower.activation_bytes
    # Forward, backward, and forward anew, up to the last matrix of a block, whose result nobody needs.
    assert anew.flops[FROZEN] == (6 * MATRICES - 2 * D * HIDDEN) * BLOCKS * TOKENS


@pytest.mark.slow
def test_nothing_of_the_model_is_allocated():
    from climafuse.memory import memory_state

    before = memory_state()
    found = measure(workload(fusion_options={"queries": 2, "feed_forward": 20_000_000}), phases=False)
    after = memory_state()
    assert found.trainable_bytes > 5e9
    if before is not None and after is not None:
        assert after.peak - before.peak < 3e8


@pytest.mark.slow
def test_trainable_kind_counts_six(plain):
    """Weights of the fusion at the text: feed-forward of 2 × D × 24, for all tokens; 6 operations each."""
    other = measure(workload(fusion_options={"queries": 2, "feed_forward": 48}), phases=False, slack=1.0)
    assert other.flops[TRAINABLE] - plain.flops[TRAINABLE] == 6 * 2 * D * 24 * TOKENS
    assert torch.is_grad_enabled()


def test_a_sampled_part_of_a_quantized_head_is_of_the_head():
    """As many operations as with a head that is not quantized, of the same kinds."""
    plain = workload(dtype="bfloat16", sampled_vocabulary=50)
    found = [
        measure(replace(plain, quantization="int8", quantize_head=head), phases=False).flops
        for head in (False, True)
    ]
    assert found[0]["head"] > 0
    assert found[1] == found[0]


def test_weights_that_lie_in_another_type_are_not_mapped():
    work = workload(dtype="bfloat16", quantization="int8", distinct_tokens=0)
    assert measure(replace(work, file_dtype="bfloat16"), phases=False).mapped_bytes > 0
    other = measure(replace(work, file_dtype="float32"), phases=False)
    assert (other.mapped_bytes, other.untouched_bytes) == (0, 0)


def test_adapters_are_trained_beside_frozen_weights(plain):
    adapted = measure(workload(lora={"rank": 2, "layers": [3]}), phases=False, slack=1.0)
    # Two rows and columns beside each matrix of a block: sides of queries and output, keys and values, feed-forward.
    sides = 2 * (D + D) + 2 * (D + D // 2) + 3 * (D + HIDDEN)
    assert adapted.trainable - plain.trainable == 2 * sides
    assert adapted.optimizer_bytes - plain.optimizer_bytes == 2 * 8 * sides
    assert (adapted.frozen, adapted.frozen_bytes) == (plain.frozen, plain.frozen_bytes)
    assert (adapted.trained_blocks, plain.trained_blocks) == (1, 0)
