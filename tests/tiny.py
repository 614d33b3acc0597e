"""Tiny random causal language models of eight architectures, with a tokenizer, built in milliseconds.

For tests only: no hub, no file. Their weights are random, but larger than usual, so that every position,
block and norm leaves a visible mark on the logits.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from climafuse.backbones import LoadedBackbone

ARCHITECTURES = ("gpt2", "opt", "gpt_neo", "gpt_neox", "llama", "qwen2", "mistral", "gemma3")
# Learned positions and a fused projection; rotary ones and grouped heads; windows, a cap and tied embeddings. The quick
# suite runs in these what goes through a whole model, and `scripts/test --all` in every one.
TYPICAL = ("gpt2", "llama", "gemma3")

in_every_architecture = pytest.mark.parametrize(
    "architecture",
    [
        *TYPICAL,
        *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name not in TYPICAL),
    ],
)

SENTENCES = (
    "The temperature is 12 °C, the pressure 1013 hPa and the wind 7 m/s from the northwest.",
    "What is the mean temperature? It is -8 °C.",
    "What is the wind speed and direction? The wind is calm.",
    "user assistant system: the sea surface temperature anomaly is +0.7 K, warmer than normal.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new byte-level BPE tokenizer (digits one by one, as SmolLM2's) with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(architecture: str, *, num_blocks: int = 4, hidden_size: int = 32) -> PreTrainedConfig:
    """Return the configuration of a tiny model; windows of local attention are shorter than test texts."""
    from transformers import (
        Gemma3TextConfig,
        GPT2Config,
        GPTNeoConfig,
        GPTNeoXConfig,
        LlamaConfig,
        MistralConfig,
        OPTConfig,
        Qwen2Config,
    )

    tokenizer = tiny_tokenizer()
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    llama = {**shared, "intermediate_size": 2 * hidden_size, "num_key_value_heads": 2}
    local = ["sliding_attention", "full_attention"]
    match architecture:
        case "gpt2":
            return GPT2Config(**shared)
        case "opt":
            return OPTConfig(**shared, ffn_dim=2 * hidden_size, word_embed_proj_dim=hidden_size)
        case "gpt_neo":
            kinds = [[["global", "local"], num_blocks // 2]]
            return GPTNeoConfig(**shared, attention_types=kinds, window_size=8)
        case "gpt_neox":
            return GPTNeoXConfig(**shared, intermediate_size=2 * hidden_size)
        case "llama":
            return LlamaConfig(**llama, tie_word_embeddings=True)
        case "qwen2":
            return Qwen2Config(**llama)
        case "mistral":
            return MistralConfig(**llama, sliding_window=8)
        case "gemma3":
            return Gemma3TextConfig(
                **llama,
                head_dim=hidden_size // 4,
                query_pre_attn_scalar=hidden_size // 4,
                layer_types=[local[i % 2] for i in range(num_blocks)],
                sliding_window=8,
                final_logit_softcapping=30.0,
            )
    raise ValueError(f"no tiny model of {architecture!r}; known: {', '.join(ARCHITECTURES)}")


def tiny_model(
    architecture: str = "llama",
    *,
    num_blocks: int = 4,
    hidden_size: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return a tiny random causal language model, in eval mode, not frozen."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(architecture, num_blocks=num_blocks, hidden_size=hidden_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # some architectures draw vectors, to which the noise below is added
        # Built in its type: `.to(torch.bfloat16)` would round the rotary frequencies too; loading does not.
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.float() + 0.15 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model.eval()


def tiny_backbone(
    architecture: str = "llama",
    *,
    num_blocks: int = 4,
    hidden_size: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LoadedBackbone:
    """Return a tiny model as a frozen backbone in memory, with tokenizer and identity."""
    from climafuse.backbones import LoadedBackbone

    model = tiny_model(architecture, num_blocks=num_blocks, hidden_size=hidden_size, seed=seed, dtype=dtype)
    return LoadedBackbone.from_model(model, tiny_tokenizer(), id=f"tiny-{architecture}", random_weights=True)
