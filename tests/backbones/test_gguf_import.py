"""GGUF files turned into Hugging Face directories. Oracles: the model written, and transformers' reader."""

from __future__ import annotations

import hashlib

import pytest
import torch
from gguf import GGMLQuantizationType

from climafuse.backbones.gguf_import import import_gguf
from climafuse.errors import BackboneError
from tests.backbones.gguf_files import write_gguf
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    return made


def _load(directory):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


def test_an_unquantized_file_gives_the_model_that_was_written(tmp_path, directory):
    write_gguf(tmp_path / "tiny.gguf")
    written = tiny_model("llama", dtype=torch.bfloat16)
    import_gguf(tmp_path / "tiny.gguf", directory)
    model, _ = _load(directory)
    state, wanted = model.state_dict(), written.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    ids = torch.arange(20)[None]
    assert torch.equal(
        model(input_ids=ids).logits, written(input_ids=ids).logits
    )  # rotations, norms, tied head
    assert model.config.rms_norm_eps == 1e-6  # not 9.999999974752427e-07, which float32 makes of it
    assert model.generation_config.eos_token_id == tiny_tokenizer().eos_token_id


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
@pytest.mark.filterwarnings("default")  # of the reference
def test_quantized_weights_equal_those_of_transformers_reader(tmp_path, directory, kind):
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "tiny.gguf", kind)
    import_gguf(tmp_path / "tiny.gguf", directory)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    state, wanted = _load(directory)[0].state_dict(), reference.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_the_tokenizer_splits_joins_and_chats_as_the_original(tmp_path, directory):
    write_gguf(tmp_path / "tiny.gguf")
    import_gguf(tmp_path / "tiny.gguf", directory)
    tokenizer, original = _load(directory)[1], tiny_tokenizer()
    for text in ("The temperature is 12 °C.", "1013.25 hPa, ½ ², 北", "<|im_start|>user\n-8<|im_end|>"):
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("is 1013 hPa")
    assert [piece for piece, _ in pieces] == ["is", "Ġ", "1", "0", "1", "3", "ĠhPa"]
    assert tokenizer.special_tokens_map == original.special_tokens_map
    chat = [{"role": "user", "content": "Hot?"}]
    expected = "<|im_start|>user\nHot?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected
    assert tokenizer.decode([original.eos_token_id, 40], skip_special_tokens=True) == original.decode([40])


def test_the_conversion_is_a_function_of_the_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        import_gguf(tmp_path / "tiny.gguf", tmp_path / name)
        hashes.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"changes": {"general.architecture": "gemma3"}}, "architecture llama; received gemma3"),
        ({"changes": {"tokenizer.ggml.pre": "qwen2"}}, "received gpt2, qwen2"),
        ({"changes": {"tokenizer.ggml.model": "llama"}}, "received llama, smollm"),
        ({"changes": {"tokenizer.ggml.add_bos_token": True}}, "received add_bos_token"),
        ({"changes": {"llama.rope.scaling.type": "yarn"}}, r"received llama\.rope\.scaling\.type"),
        ({"changes": {"llama.rope.dimension_count": 4}}, "over all 8 dimensions; received 4"),
        ({"changes": {"llama.embedding_length": None}}, r"llama\.embedding_length; received none"),
        ({"changes": {"llama.block_count": 5}}, r"model\.layers\.4.*received None"),
        ({"changes": {"llama.block_count": 3}}, r"model\.layers\.3.*None; received \("),
        ({"without": ("blk.2.ffn_up.weight",)}, r"model\.layers\.2\.mlp\.up_proj\.weight"),
        ({"extra_tensor": "rope_freqs.weight"}, r"received rope_freqs\.weight"),
        ({"extra_tensor": "blk.0.attn_q.bias"}, r"received blk\.0\.attn_q\.bias"),
    ],
)
def test_what_cannot_be_converted_without_guessing_is_refused(tmp_path, directory, case, reason):
    write_gguf(tmp_path / "tiny.gguf", **case)
    with pytest.raises(BackboneError, match=reason):
        import_gguf(tmp_path / "tiny.gguf", directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"no such thing at all, though long enough to hold a header"]
)
def test_a_file_that_is_no_gguf_is_one_line(tmp_path, directory, content):
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(BackboneError, match="a complete GGUF file"):
        import_gguf(tmp_path / "broken.gguf", directory)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_line(tmp_path, directory, share):
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BackboneError, match="a complete GGUF file"):
        import_gguf(tmp_path / "tiny.gguf", directory)
