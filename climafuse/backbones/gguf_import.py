"""A GGUF file turned into a Hugging Face directory: bfloat16 safetensors, configuration, tokenizer.

Only what can be converted without guessing is: the Llama architecture (Llama, Mistral, SmolLM and kin) with a
byte-level BPE tokenizer whose splitting rule is known. The arithmetic is float32 with one rounding to
bfloat16 and the files are written in a fixed order, so that one GGUF file gives the same bytes everywhere.

Not through the GGUF support of transformers: it drops the tokenizer's splitting rule (SmolLM2 takes digits
one by one), and its conversion may change between releases. The weights of the default backbone equal its
result bit for bit.

Reference:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from .gguf_header import check_header

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from transformers import LlamaConfig

# GGUF tensor in block n -> parameter of a LlamaDecoderLayer.
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CONTROL_TOKEN, _USER_TOKEN = 3, 4  # kinds of token in `tokenizer.ggml.token_type`


def import_gguf(path: Path, directory: Path) -> None:
    """Write the model of a GGUF file to a directory that `AutoModelForCausalLM` and `AutoTokenizer` read.

    Args:
        path: The GGUF file.
        directory: An existing, empty directory.

    Raises:
        BackboneError: The file is damaged, or of an architecture, tokenizer or scaling that is not supported.
    """
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    try:
        check_header(path)
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise BackboneError(
            str(path),
            expected="a complete GGUF file",
            received=f"{type(error).__name__}: {error}",
            remedy="Fetch the file again.",
        ) from error

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _configuration(path, metadata, tied="output.weight" not in tensors)
    state = {}
    for name, tensor in tensors.items():
        values = _dequantize(path, tensor)  # [out, in] or [D]
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            key_heads = config.num_key_value_heads or config.num_attention_heads
            heads = config.num_attention_heads if name.endswith("attn_q.weight") else key_heads
            values = _unpermute(values, heads)
        state[_parameter_name(path, name)] = torch.from_numpy(values).to(torch.bfloat16).contiguous()

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if given != wanted:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise BackboneError(
            str(path),
            expected=f"every tensor of the configuration, such as {wrong[0]} {wanted.get(wrong[0])}",
            received=f"{given.get(wrong[0])}",
            remedy="The file does not fit its own description: fetch it again or use another one.",
        )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(path, metadata), **_special_tokens(metadata)
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(directory)
    save_file(dict(sorted(state.items())), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # written private; a shared cache must be readable


def _configuration(path: Path, metadata: Mapping[str, Any], *, tied: bool) -> LlamaConfig:
    """Translate the metadata; what would change the computation and is not understood is refused."""
    from transformers import LlamaConfig

    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise _unsupported(path, "the architecture llama", architecture)
    scaling = {
        name: value for name, value in metadata.items() if ".rope.scaling." in name and value != "none"
    }
    if scaling:
        raise _unsupported(path, "rotary positions without scaling", next(iter(scaling)))

    def value(key: str, default: object = None) -> Any:
        found = metadata.get(f"llama.{key}", default)
        if found is None:
            raise _unsupported(path, f"the entry llama.{key}", "none")
        return found

    num_heads = value("attention.head_count")
    head_dim = value("attention.key_length", value("embedding_length") // num_heads)
    if value("rope.dimension_count", head_dim) != head_dim:
        raise _unsupported(
            path, f"rotary positions over all {head_dim} dimensions", value("rope.dimension_count")
        )
    return LlamaConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=num_heads,
        num_key_value_heads=value("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=_shortest(value("attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(value("rope.freq_base", 10000.0))},
        tie_word_embeddings=tied,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def _shortest(value: float) -> float:
    """Undo the widening of a float32: 9.999999747378752e-06 was written as 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _parameter_name(path: Path, name: str) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    parts = name.split(".")  # blk.7.attn_q.weight
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK_TENSORS and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.weight"
    raise _unsupported(path, "tensors of a dense Llama model", name)


def _dequantize(path: Path, tensor: Any) -> np.ndarray:
    """Return a tensor as float32 [out, in]; GGUF names the fastest dimension first."""
    import numpy as np
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise _unsupported(
            path, "a quantization that the gguf package can undo", tensor.tensor_type.name
        ) from error
    # A copy: unquantized tensors come as views of the read-only file.
    return np.array(values, dtype=np.float32).reshape([int(size) for size in reversed(tensor.shape)])


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of query and key rows.

    llama.cpp rotates neighboring pairs of rows, transformers the two halves of a head. The rows of a head lie
    as (0a, 0b, 1a, 1b, …) in the file and as (0a, 1a, …, 0b, 1b, …) in the model.
    """
    rows, width = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _split_digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _split_bytes()])


def _split_bytes() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# `tokenizer.ggml.pre` -> how text is split before byte pairs are merged.
_SPLITS: dict[str, Callable[[], Any]] = {
    "smollm": _split_digits,
    "starcoder": _split_digits,
    "gpt-2": _split_bytes,
}


def _tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise _unsupported(
            path, f"a byte-level BPE tokenizer split by {' or '.join(_SPLITS)}", f"{kind}, {split}"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if token_type == _CONTROL_TOKEN:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif token_type == _USER_TOKEN:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if metadata.get("tokenizer.ggml.add_bos_token"):
        raise _unsupported(path, "a tokenizer that adds no token at the start", "add_bos_token")
    return tokenizer


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        f"{short}_token": tokens[metadata[f"tokenizer.ggml.{name}_token_id"]]
        for name, short in names.items()
        if f"tokenizer.ggml.{name}_token_id" in metadata
    }


def _unsupported(path: Path, expected: str, received: object) -> BackboneError:
    return BackboneError(
        str(path),
        expected=expected,
        received=received,
        remedy="Import the original weights as a Hugging Face directory with safetensors instead.",
    )
