"""What the sections share: real windows of the bundled reanalysis, a backbone, a random backbone of mock size."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from climafuse.backbones import LoadedBackbone, load_backbone
from climafuse.backbones.architectures import ARCHITECTURES
from climafuse.backbones.synthesize import synthesize
from climafuse.data.batch import collate_windows, sample_boxes
from climafuse.data.files import cache_directory
from climafuse.data.samples import sample_path
from climafuse.data.sources import open_climate
from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from scripts.benchmarks.keeping import say

VARIABLES = (
    "t2m",
    "u10",
    "v10",
    "msl",
    "tp",
    "ws10",
)  # the default channels; ws10 is derived from u10 and v10
HISTORY = 2  # steps of a window
DEGREES = 16.0  # side of a box
MOCK = "mock"


@functools.cache
def store() -> TrainingStore:
    """Return the bundled ERA5 sample as a training store in memory."""
    return TrainingStore.from_dataset(open_climate(sample_path("era5"), variables=VARIABLES))


@functools.cache
def windows(num: int) -> list[Window]:
    """Return random windows of it."""
    times = store().splits.valid_times("train", history=HISTORY)
    drawn = sample_boxes(times, num, size=(DEGREES, DEGREES), seed=0)
    return [store().window(step, box, HISTORY) for step, box in drawn]


def climate(num: int) -> dict[str, torch.Tensor]:
    """Return tensors of random windows, for the model."""
    return collate_windows(windows(num), store().statistics)


@functools.cache
def backbone(name: str) -> LoadedBackbone:
    """Return a frozen language model: a real one in bfloat16, or the mock."""
    return mock_backbone() if name == MOCK else load_backbone(name, dtype="bfloat16")


def mock_backbone() -> LoadedBackbone:
    """Return a Llama of 1.6 million random weights: it has the capacity of one so small, and knows nothing.

    Width, depth and vocabulary are those of an earlier system's mock run; its tokens here are bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: number for number, token in enumerate([*special, *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1], model_max_length=512
    )
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return LoadedBackbone.from_model(model, fast, id="mock-llama", random_weights=True)


def random_texts(vocabulary: int, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return texts of random tokens, the last third of each labeled: the arithmetic is that of any other text."""
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(0, vocabulary, (texts, tokens)))
    labels = ids.clone()
    labels[:, : tokens - tokens // 3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def backbone_of(name: str) -> Path | str:
    """Return the directory of an architecture, random weights written on the first call; any other name as it is."""
    if name not in ARCHITECTURES:
        return name
    directory = cache_directory() / "benchmarks" / "backbones" / name
    if not directory.is_dir():
        say(f"writing {name} with random weights to {directory}")
        synthesize(name, directory, progress=say)
    return directory
