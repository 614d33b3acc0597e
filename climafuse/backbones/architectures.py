"""Exact architectures of well-known language models, by name: their configurations, without their weights.

For plans, and for capacity work where the real weights are out of reach (`synthesize`). Real weights need no entry
here: a model directory or hub id brings its own configuration.

Reference:
    The `config.json` of each model on the Hugging Face hub; parameter counts follow from them and are tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Architecture:
    """The shape of a language model.

    Attributes:
        name: What it is called here.
        model_type: Its family in transformers.
        values: What its configuration sets; the rest are the family's defaults.
        num_parameters: Exact count, tied ones once.
        planning_only: Whether it is there for plans alone, as nobody needs so many gigabytes of random numbers.
    """

    name: str
    model_type: str
    num_parameters: int
    values: dict[str, Any] = field(default_factory=dict)
    planning_only: bool = False


_GPT2_LARGE = {"n_embd": 1280, "n_layer": 36, "n_head": 20}
_LLAMA_3 = {
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}
_LLAMA_3_ROPE = {"rope_type": "default", "rope_theta": 500_000.0}

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for entry in [
        Architecture("gpt2-large", "gpt2", 774_030_080, _GPT2_LARGE),
        Architecture("gpt2-xl", "gpt2", 1_557_611_200, {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
        Architecture("dialogpt-large", "gpt2", 774_030_080, _GPT2_LARGE),
        Architecture(
            "opt-1.3b",
            "opt",
            1_315_758_080,
            {
                "hidden_size": 2048,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "ffn_dim": 8192,
                "word_embed_proj_dim": 2048,
                "vocab_size": 50_272,
                "max_position_embeddings": 2048,
            },
        ),
        Architecture(
            "gpt-neo-1.3b",
            "gpt_neo",
            1_315_575_808,
            {
                "hidden_size": 2048,
                "num_layers": 24,
                "num_heads": 16,
                "attention_types": [[["global", "local"], 12]],
                "window_size": 256,
                "vocab_size": 50_257,
                "max_position_embeddings": 2048,
            },
        ),
        Architecture(
            "llama-3.2-3b",
            "llama",
            3_212_749_824,
            {
                **_LLAMA_3,
                "hidden_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 24,
                "head_dim": 128,
                "intermediate_size": 8192,
                "max_position_embeddings": 131_072,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500_000.0,
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
        ),
        Architecture(
            "llama-3-8b",
            "llama",
            8_030_261_248,
            {
                **_LLAMA_3,
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "intermediate_size": 14_336,
                "max_position_embeddings": 8192,
                "rope_parameters": _LLAMA_3_ROPE,
            },
        ),
        Architecture(
            "llama-2-13b",
            "llama",
            13_015_864_320,
            {
                "hidden_size": 5120,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "intermediate_size": 13_824,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
            planning_only=True,
        ),
        Architecture(
            "opt-30b",
            "opt",
            29_974_540_288,
            {
                "hidden_size": 7168,
                "num_hidden_layers": 48,
                "num_attention_heads": 56,
                "ffn_dim": 28_672,
                "word_embed_proj_dim": 7168,
                "vocab_size": 50_272,
                "max_position_embeddings": 2048,
            },
            planning_only=True,
        ),
        Architecture(
            "llama-30b",
            "llama",
            32_528_943_616,
            {
                "hidden_size": 6656,
                "num_hidden_layers": 60,
                "num_attention_heads": 52,
                "intermediate_size": 17_920,
                "max_position_embeddings": 2048,
            },
            planning_only=True,
        ),
    ]
}


def architecture(name: str) -> Architecture:
    """Return the architecture of a name, in any case.

    Raises:
        ConfigurationError: There is none of that name.
    """
    found = ARCHITECTURES.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), ARCHITECTURES, n=1)
        raise ConfigurationError(
            "architecture",
            expected=", ".join(ARCHITECTURES),
            received=repr(name),
            remedy=f"Did you mean {near[0]!r}?" if near else "Choose one of these.",
        )
    return found


def config_of(name: str) -> PreTrainedConfig:
    """Return the configuration of an architecture.

    Args:
        name: A name of `ARCHITECTURES`.

    Raises:
        ConfigurationError: There is none of that name.
    """
    from transformers import AutoConfig

    found = architecture(name)
    config: PreTrainedConfig = AutoConfig.for_model(found.model_type, **found.values)
    return config


def count_parameters(config: PreTrainedConfig) -> int:
    """Count the parameters of a causal language model, tied ones once; nothing is allocated.

    Args:
        config: Its configuration.
    """
    return sum(parameter.numel() for parameter in skeleton(config).parameters())


def skeleton(config: PreTrainedConfig) -> Any:
    """Return a causal language model whose parameters have shape and type, but no values.

    Args:
        config: Its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
