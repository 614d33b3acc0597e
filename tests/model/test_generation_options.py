"""What files say about generation: which words, and nothing else. Oracle: transformers' own defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from climafuse.errors import CheckpointError
from climafuse.model import ClimateTextForCausalLM
from climafuse.model.generation import own_options, read_options
from tests.model.build import climate_of, make_batch, make_model

HONEST: dict[str, Any] = {
    "bos_token_id": 1, "eos_token_id": [2, 70_000], "pad_token_id": 0, "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [7], "bad_words_ids": [[3, 4], [5]], "max_length": 100, "max_new_tokens": 9,
    "min_length": 0, "min_new_tokens": 1,
    "do_sample": True, "use_cache": False, "renormalize_logits": True, "remove_invalid_values": True, "num_beams": 3,
    "early_stopping": "never", "length_penalty": -0.5, "temperature": 0.7, "top_k": 20, "top_p": 1.0, "min_p": 0.1,
    "typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 0.0, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2,
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "cache_implementation": "offloaded_static", "cache_config": {"backend": "quanto"},
    "compile_config": {"backend": "inductor"},
    "return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 3, "guidance_scale": 2.0,
    "dola_layers": "high", "penalty_alpha": 0.6, "constraints": [1], "force_words_ids": [[1]], "stop_strings": ["a"],
    "prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "watermarking_config": {"a": 1}, "custom_generate": ".",
    "max_time": 1e-9, "prefill_chunk_size": 1, "sequence_bias": [[[1], 3.0]], "token_healing": True, "to_dict": 7,
    "validate": "x", "__class__": "x", "update": 1, "low_memory": True, "num_beam_groups": 2,
}  # fmt: skip
IMPOSSIBLE: dict[str, Any] = {
    "pad_token_id": -1, "eos_token_id": "</s>", "bos_token_id": 1.5, "suppress_tokens": [10**6], "bad_words_ids": [[]],
    "num_beams": 10**9, "temperature": 0, "top_k": -5, "top_p": 1.1, "min_p": float("nan"), "repetition_penalty": -1.0,
    "length_penalty": float("inf"), "do_sample": "yes", "max_new_tokens": True, "min_new_tokens": -1,
    "early_stopping": "soon", "no_repeat_ngram_size": 2.5, "begin_suppress_tokens": 3, "typical_p": 0.0,
}  # fmt: skip
DOCUMENTS = {"list": "[1]", "broken": "{", "nested": "[" * 100_000, "binary": "\udcff"}


@pytest.fixture(scope="module")
def model() -> ClimateTextForCausalLM:
    return make_model()


def said(options: GenerationConfig) -> dict[str, Any]:
    """What differs from transformers' defaults."""
    return {name: value for name, value in options.to_diff_dict().items() if name != "transformers_version"}


def write(folder: Path, content: str) -> Path:
    (folder / "generation_config.json").write_bytes(content.encode(errors="surrogateescape"))
    return folder


def test_options_that_choose_words_are_read_saved_and_taken_from_a_backbone(tmp_path: Path) -> None:
    GenerationConfig(**HONEST).save_pretrained(tmp_path)  # as transformers writes them
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"output_scores": False, "max_time": None, **json.loads(path.read_text())}))
    options = read_options(tmp_path, 1000)
    assert options is not None
    assert said(options) == said(GenerationConfig(**HONEST)) == HONEST
    assert said(own_options(GenerationConfig(**HONEST), 1000)) == HONEST


@pytest.mark.parametrize("name", OTHERS | IMPOSSIBLE)
def test_any_other_option_of_a_saved_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"eos_token_id": 2, name: (OTHERS | IMPOSSIBLE)[name]}))
    with pytest.raises(CheckpointError, match=rf"generation_config\.json.*received {name}: "):
        read_options(tmp_path, 1000)


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_broken_file_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_options(write(tmp_path, content), 1000)


def test_loading_reads_them_so(model: ClimateTextForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    write(tmp_path, json.dumps({"cache_implementation": "offloaded_static"}))
    with pytest.raises(CheckpointError, match="cache_implementation"):
        ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=_backbone(model))


@pytest.mark.parametrize("name", sorted(OTHERS | IMPOSSIBLE))
def test_what_a_backbone_says_besides_is_left_out(name: str) -> None:
    """Published backbones ask for caches that suit their machines; what they say is not said otherwise for it."""
    config = GenerationConfig(eos_token_id=2)
    if not name.startswith("__"):
        setattr(config, name, (OTHERS | IMPOSSIBLE)[name])
    expected = {} if name == "eos_token_id" else {"eos_token_id": 2}
    assert said(own_options(config, 1000)) == expected


def test_a_model_on_such_a_backbone_answers_as_without(model: ClimateTextForCausalLM, tmp_path: Path) -> None:
    batch = make_batch(model, num_windows=1, prompts=("What?",), answers=None)
    call = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **climate_of(batch)}
    expected = model.generate(**call, max_new_tokens=4, do_sample=False)
    config = model.backbone.generation_config
    before = dict(vars(config))
    try:
        config.cache_implementation, config.return_dict_in_generate = "offloaded_static", True
        other = ClimateTextForCausalLM(model.config, _backbone(model))
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval().generate(**call, max_new_tokens=4, do_sample=False), expected)
        other.save_pretrained(tmp_path)
        loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=_backbone(model))
        assert torch.equal(loaded.generate(**call, max_new_tokens=4, do_sample=False), expected)
    finally:
        vars(config).update(before)


def _backbone(model: ClimateTextForCausalLM) -> Any:
    from climafuse.backbones import LoadedBackbone

    return LoadedBackbone(model.backbone, model.tokenizer, model.backbone_identity)
