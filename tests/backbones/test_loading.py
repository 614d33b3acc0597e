"""Loading: exactly the weights of the files, frozen, or one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from climafuse.backbones import (
    DEFAULT_BACKBONE,
    LoadedBackbone,
    find_backbone,
    freeze,
    hash_files,
    hash_parameters,
    import_backbone,
    load_backbone,
)
from climafuse.backbones.widening import widen_products
from climafuse.errors import BackboneError, BackboneNotFoundError, ConfigurationError
from tests.tiny import ARCHITECTURES, tiny_backbone, tiny_config, tiny_model, tiny_tokenizer


def _save(directory: Path, architecture: str = "llama", **options) -> Path:
    tiny_model(architecture).save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def _change_config(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def _one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_directory_loads_bit_for_bit_and_in_silence(architecture, tmp_path, capfd):
    directory, ids = _save(tmp_path / "model", architecture), torch.arange(5, 25)[None]
    capfd.readouterr()
    loaded = load_backbone(directory, dtype="float32")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(loaded.model(input_ids=ids).logits, tiny_model(architecture)(input_ids=ids).logits)
    assert loaded.model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.path == directory
    assert loaded.tokenizer("12 hPa")["input_ids"] == tiny_tokenizer()("12 hPa")["input_ids"]


def test_the_default_type_is_bfloat16_with_exact_rotary_frequencies(tmp_path):
    loaded = load_backbone(_save(tmp_path / "model"))
    ids = torch.arange(5, 25)[None]
    expected = tiny_model("llama", dtype=torch.bfloat16)
    widen_products(expected)  # where this processor multiplies no bfloat16
    assert loaded.model.dtype == torch.bfloat16
    assert torch.equal(loaded.model(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_shards_load_as_one(tmp_path):
    directory = _save(tmp_path / "model", max_shard_size="50KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    wanted = tiny_model("llama").state_dict()
    state = load_backbone(directory, dtype="float32").model.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_identity_of_a_plain_directory(tmp_path):
    directory = _save(tmp_path / "model")
    identity = load_backbone(directory).identity
    assert identity == {
        "id": str(directory.resolve()),
        "revision": None,
        "content_hash": hash_files(directory),
        "architecture": "LlamaForCausalLM",
        "num_parameters": sum(p.numel() for p in tiny_model("llama").parameters()),
        "random_weights": False,
    }
    assert json.loads(json.dumps(identity)) == identity


def test_a_model_in_memory_is_a_backbone_too():
    one, two = tiny_backbone("llama"), tiny_backbone("llama", seed=1)
    assert one.identity["content_hash"] == hash_parameters(one.model)
    assert one.identity["content_hash"] != two.identity["content_hash"]
    assert one.identity["random_weights"]
    assert one.path is None
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    assert isinstance(one, LoadedBackbone)


def test_random_weights_stay_known_through_an_import(tmp_path):
    from climafuse.backbones.cache import write_manifest

    directory = _save(tmp_path / "model")
    write_manifest(directory, id="made-up", random_weights=True)
    import_backbone(directory, "mine")
    assert load_backbone("mine").identity["random_weights"]


# --- frozen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_mode_computes_what_eval_mode_does(architecture):
    from transformers import AutoModelForCausalLM

    config = tiny_config(architecture)
    rates = {"resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout",
             "resid_dropout", "embed_dropout", "layerdrop"}  # fmt: skip
    for name in rates & vars(config).keys():
        setattr(config, name, 0.5)
    model, ids = AutoModelForCausalLM.from_config(config), torch.arange(5, 25)[None]
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # dropout is at work
    freeze(model)
    assert model.training  # the mode stays the caller's
    in_training = model(input_ids=ids).logits
    assert torch.equal(in_training, model.eval()(input_ids=ids).logits)
    assert all(getattr(model.config, name) == 0.0 for name in rates & vars(config).keys())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_noise_of_a_router_is_no_part_of_what_a_frozen_model_computes():
    from transformers import PhimoeConfig, PhimoeForCausalLM

    config = PhimoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.5, input_jitter_noise=0.5,
    )  # fmt: skip
    model, ids = PhimoeForCausalLM(config).train(), torch.arange(5, 25)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # it is at work
    freeze(model)
    assert torch.equal(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_a_tokenizer_without_padding_gets_the_end_of_text(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    config = tiny_config("gpt2")
    config.pad_token_id = None
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)
    backbone = LoadedBackbone.from_model(model, tokenizer, id="tiny")
    assert backbone.tokenizer.pad_token == "<|im_end|>"
    assert backbone.model.generation_config.pad_token_id == tokenizer.eos_token_id


# --- finding


def test_order_path_then_cache_and_names_never_mean_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = _save(tmp_path / "source")
    imported = import_backbone(source, "mine")
    assert find_backbone("mine") == imported
    shutil.copytree(source, tmp_path / "mine")
    assert find_backbone("mine") == Path("mine")  # a directory comes first, but for names of the catalog:
    shutil.copytree(source, tmp_path / DEFAULT_BACKBONE)
    shutil.copytree(source, tmp_path / "smollm2-135m-instruct")
    for name in (DEFAULT_BACKBONE, "smollm2-135m-instruct"):
        with pytest.raises(BackboneNotFoundError, match=f"climafuse backbone fetch {name}"):
            find_backbone(name, fetch=False)
        assert find_backbone(f"./{name}") == Path(name)
        assert find_backbone(Path(name)) == Path(name)


def test_the_hub_original_is_not_the_catalog_copy(tmp_path, monkeypatch):
    import_backbone(_save(tmp_path / "source"), "SmolLM2-135M-Instruct-other")
    with pytest.raises(BackboneNotFoundError):
        find_backbone("HuggingFaceTB/SmolLM2-135M-Instruct", fetch=False)


def test_the_hugging_face_cache_is_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--tiny"
    _save(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = load_backbone("org/tiny")
    assert (loaded.identity["id"], loaded.identity["revision"]) == ("org/tiny", commit)
    assert load_backbone("org/tiny", revision=commit).identity == loaded.identity
    (repository / "snapshots" / commit / "model.safetensors").unlink()  # only the tokenizer was fetched once
    with pytest.raises(BackboneNotFoundError, match="switched off"):
        load_backbone("org/tiny")


# --- refused


def test_a_missing_directory(tmp_path):
    with pytest.raises(BackboneNotFoundError, match="no such directory") as error:
        load_backbone(tmp_path / "nothing")
    _one_line(error)


def test_a_directory_without_weights(tmp_path):
    directory = _save(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    with pytest.raises(BackboneNotFoundError, match="no weights in it") as error:
        load_backbone(directory)
    _one_line(error)


def test_a_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackboneError, match=r"climafuse backbone import .*model\.gguf"):
        load_backbone(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "remedy"), [("pytorch_model.bin", "save_pretrained"), ("a.gguf", "backbone import")]
)
def test_pickles_and_quantized_files_are_refused_with_the_way_out(tmp_path, name, remedy):
    directory = _save(tmp_path / "model")
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(BackboneError, match=remedy) as error:
        load_backbone(directory)
    _one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 100, 50_000])
def test_truncated_weights(tmp_path, keep):
    weights = _save(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(
        BackboneError, match=rf"model\.safetensors: expected a complete .*\({keep} bytes\)"
    ) as error:
        load_backbone(tmp_path / "model")
    _one_line(error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"num_hidden_layers": 3},
            r"unknown model\.layers\.3\.",
        ),  # transformers would run three blocks of four
        ({"num_hidden_layers": 5}, r"no model\.layers\.4\."),  # and here invent one at random
        ({"intermediate_size": 48}, r"misshapen .*model\.layers\.0\.mlp"),
        ({"model_type": "no-such-architecture"}, "ValueError"),
        ({"model_type": "vit"}, "ValueError"),
        (
            {"model_type": "x", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}},
            "ValueError",
        ),
    ],
)
def test_weights_and_configuration_that_do_not_belong_together(tmp_path, changes, reason):
    directory = _save(tmp_path / "model")
    _change_config(directory, **changes)
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BackboneError, match=reason) as error:
        load_backbone(directory)
    _one_line(error)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_configuration_that_is_absent_or_malformed(tmp_path, content):
    directory = _save(tmp_path / "model")
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_text(content)
    with pytest.raises(BackboneError) as error:
        load_backbone(directory)
    _one_line(error)


def test_a_directory_without_a_tokenizer(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(BackboneError, match="a tokenizer beside the weights") as error:
        load_backbone(tmp_path / "model")
    _one_line(error)


def test_a_tokenizer_with_more_tokens_than_embeddings(tmp_path):
    directory = _save(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(BackboneError, match="the model's 364 embeddings; received token ids up to 364"):
        load_backbone(directory)


def test_an_imported_backbone_that_was_altered(tmp_path):
    path = import_backbone(_save(tmp_path / "source"), "mine")
    load_backbone("mine")
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BackboneError, match=r"model\.safetensors missing or altered") as error:
        load_backbone("mine")
    _one_line(error)
    content[-1] ^= 1
    weights.write_bytes(content)
    load_backbone("mine")
    (path / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match=r"tokenizer\.json missing or altered"):
        load_backbone("mine")


@pytest.mark.parametrize("dtype", ["int8", "bf16", torch.float64])
def test_unknown_types_are_usage_errors(dtype):
    with pytest.raises(ConfigurationError, match=r"^dtype: expected bfloat16 or float16 or float32"):
        load_backbone("anything", dtype=dtype)


@pytest.mark.real
def test_the_real_backbone_knows_the_capital_of_france():
    try:
        backbone = load_backbone(DEFAULT_BACKBONE, fetch=False)
    except BackboneNotFoundError:
        pytest.skip("the default backbone has not been fetched")
    assert backbone.identity["num_parameters"] == 134_515_008
    assert backbone.tokenizer.tokenize("1013 hPa") == ["1", "0", "1", "3", "Ġh", "Pa"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = backbone.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = backbone.model.generate(**inputs, max_new_tokens=10, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert "Paris" in backbone.tokenizer.decode(answer)
