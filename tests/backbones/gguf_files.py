"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Order the rows of each head as llama.cpp rotates them: row i beside row i + half."""
    per_head = len(weight) // num_heads
    half = per_head // 2
    order = [h * per_head + i + part * half for h in range(num_heads) for i in range(half) for part in (0, 1)]
    return weight[order]


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    changes: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    extra_tensor: str | None = None,
) -> None:
    """Write the tiny Llama to a GGUF file.

    Args:
        path: The file.
        kind: Quantization of its matrices.
        changes: Entries of the metadata to replace or add (strings, numbers), by full name.
        without: Tensors, by GGUF name, to leave out.
        extra_tensor: Name of a tensor to add.
    """
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    config = model.config
    metadata: dict[str, Any] = {
        "general.name": "Tiny",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": 256,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **(changes or {}),
    }
    writer = GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for name, value in metadata.items():
        if value is None:
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](name, value)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {token["content"] for token in bpe["added_tokens"] if token["special"]}
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["model"]["merges"]])

    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = tensor.numpy()
        if name in NAMES:
            gguf_name = NAMES[name]
        else:
            _, _, block, part = name.removesuffix(".weight").split(".", 3)
            gguf_name = f"blk.{block}.{NAMES[part]}.weight"
        if gguf_name in without:
            continue
        if "attn_q" in gguf_name:
            values = interleave(values, config.num_attention_heads)
        if "attn_k" in gguf_name:
            values = interleave(values, config.num_key_value_heads)
        if values.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, values)
    if extra_tensor:
        writer.add_tensor(extra_tensor, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
