"""A small workload of which everything can be counted by hand."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from climafuse.planning import Footprint, Workload

D, HIDDEN, BLOCKS, WORDS = 32, 48, 4, 100  # width, feed-forward, blocks, vocabulary
CLIMATE, FUSION = 16, 24  # width of a climate token, of the fusion's hidden layer


def workload(**changes: Any) -> Workload:
    """Two windows with two texts each of ten tokens, three labels in each; gated addition at block 2."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=D,
        intermediate_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    settings: dict[str, Any] = {
        "dtype": "float32",
        "precision": "float32",
        "variables": ("t2m", "msl"),
        "history": 2,
        "grid": (8, 8),
        "encoder_options": {"width": CLIMATE, "depth": 1, "heads": 2},
        "fusion": "gated_addition",
        "fusion_options": {"queries": 2, "feed_forward": FUSION},
        "sites": [2],
        "windows": 2,
        "texts_per_window": 2,
        "length": 10,
        "labels": 3,
        "all_labels": 3,
        **changes,
    }
    return Workload("tiny", config, **settings)


def counted(work: Workload, *, phases: bool = True, slack: float = 1.0) -> Footprint:
    """Stands for `measure` where what follows from counts is tested, not they: 1000 bytes a token of each window."""
    saving = 0.5 if work.checkpoint_activations else 1.0
    bits = {None: 16, "int8": 8, "int4": 4}[work.quantization]
    return Footprint(
        frozen=1_000_000,
        trainable=50_000,
        frozen_bytes=1_000_000 * bits // 8,
        mapped_bytes=0,
        untouched_bytes=0,
        trainable_bytes=200_000,
        quantizing_bytes=70_000,
        gradient_bytes=200_000,
        optimizer_bytes=400_000,
        activation_bytes=int(900 * work.microbatch * work.length * saving),
        step_bytes=int(1000 * work.microbatch * work.length * saving),
        store_bytes=64 * (work.stored_tokens or 0) if work.reuse_prefix else 0,
        storing_bytes=0,
        vocabulary_bytes=0,
        evaluation_bytes=500 * work.evaluation_windows * work.length,
        buffer_bytes=0,
        gathered_bytes=300_000,
        flops={
            "trainable": 6,
            "frozen_with_gradient": 40,
            "frozen_without_gradient": 20,
            "head": 4,
            "attention": 3,
        },
        reused_flops=0,
        sites=("2",),
        prefix_site="2",
        num_soft_tokens=0,
        num_blocks=4,
        blocks_below=2,
        blocks_run=4,
        trained_blocks=0,
    )
