"""Random weights of an exact architecture: written in shards, loaded like real ones, labeled everywhere."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from climafuse.backbones import hash_files, load_backbone
from climafuse.backbones import synthesize as module
from climafuse.backbones.architectures import ARCHITECTURES, Architecture
from climafuse.backbones.cache import MANIFEST_NAME
from climafuse.backbones.synthesize import synthesize, write_random
from climafuse.cli.app import app
from climafuse.errors import BackboneError, ConfigurationError, OutputError
from climafuse.planning import find_architecture
from tests.tiny import ARCHITECTURES as FAMILIES
from tests.tiny import tiny_config, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_written_whole_in_shards_and_loads(family, tmp_path):
    directory = write_random(
        "made-up", tiny_config(family), tiny_tokenizer(), tmp_path / "model", shard_bytes=20_000
    )
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(
        len(tensors := load_file(shard)) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        for shard in shards
    )
    loaded = load_backbone(directory)  # refuses a missing, unknown or misshapen tensor, and an altered file
    assert loaded.identity["random_weights"]
    assert loaded.identity["id"] == str(directory)  # a name would not be found again
    ids = torch.arange(5, 45)[None]
    loss = loaded.model(input_ids=ids, labels=ids).loss.item()
    assert abs(loss - math.log(384)) < 1  # knows nothing, and says all words alike


def test_weights_follow_the_rules_of_the_family(tmp_path):
    config = tiny_config("gpt2", num_blocks=8, hidden_size=64)
    state = load_file(
        write_random("m", config, tiny_tokenizer(), tmp_path / "m", dtype="float32") / "model.safetensors"
    )
    one = state["transformer.h.3.mlp.c_fc.weight"]
    assert one.std().item() == pytest.approx(0.02, rel=0.05)
    # Of what is added to the residual stream by 2 · 8 layers: GPT-2's own rule, applied by the block, not by the layer.
    assert state["transformer.h.3.mlp.c_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert torch.equal(state["transformer.h.3.ln_1.weight"], torch.ones(64))
    assert torch.equal(state["transformer.h.3.attn.c_attn.bias"], torch.zeros(192))
    assert not torch.equal(one, state["transformer.h.4.mlp.c_fc.weight"])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    hashes = [
        hash_files(write_random("m", tiny_config("llama"), tiny_tokenizer(), tmp_path / f"{n}", seed=seed))
        for n, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_global_random_numbers_stay(tmp_path):
    before = torch.random.get_rng_state()
    write_random("m", tiny_config("llama"), tiny_tokenizer(), tmp_path / "m")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_tokenizer_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path):
    config = tiny_config("llama")
    config.vocab_size = 100
    with pytest.raises(BackboneError, match="100 embeddings"):
        write_random("m", config, tiny_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link to nothing"])
def test_what_exists_is_not_touched_and_refused_before_anything_is_drawn(kind, tmp_path, monkeypatch):
    place = tmp_path / "m"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nothing")
    monkeypatch.setattr(module, "_random_tensors", lambda *_: pytest.fail("drawn"))
    with pytest.raises(OutputError, match="does not exist yet"):
        write_random("m", tiny_config("llama"), tiny_tokenizer(), place)
    assert [path.name for path in tmp_path.rglob("*")] == ["m"]


def test_a_disk_without_room_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    monkeypatch.setattr(module, "_random_tensors", lambda *_: pytest.fail("drawn"))
    with pytest.raises(OutputError, match=r"room for 0\.1 MB; received 0\.0 MB free"):
        write_random("m", tiny_config("llama"), tiny_tokenizer(), tmp_path / "a" / "m")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_named_one(tmp_path, monkeypatch):
    """With a small stand-in for an architecture, and the tokenizer of a directory."""
    values = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 400}
    monkeypatch.setitem(ARCHITECTURES, "gpt2-large", Architecture("gpt2-large", "gpt2", 0, values))
    source = write_random("source", tiny_config("llama"), tiny_tokenizer(), tmp_path / "source")
    out = tmp_path / "out"
    command = ["backbone", "synthesize", "--config", "gpt2-large", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--tokenizer", str(source), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    config = json.loads((out / "config.json").read_text())
    assert (config["n_embd"], config["dtype"], config["vocab_size"]) == (16, "float32", 400)
    assert load_backbone(out, dtype="float32").identity["id"] == str(out)


def test_without_its_manifest_a_copy_is_random_still(tmp_path):
    directory = write_random("made-up", tiny_config("llama"), tiny_tokenizer(), tmp_path / "model")
    (directory / MANIFEST_NAME).unlink()
    assert load_backbone(directory).identity["random_weights"]
    assert find_architecture(str(directory)).random_weights
    config = json.loads((directory / "config.json").read_text())
    del config["random_weights"]
    (directory / "config.json").write_text(json.dumps(config))
    assert not load_backbone(directory).identity["random_weights"]
    assert not find_architecture(str(directory)).random_weights


def test_one_for_plans_only_is_refused():
    with pytest.raises(ConfigurationError, match="plans only"):
        synthesize("llama-30b", "nowhere")
    with pytest.raises(ConfigurationError, match="int8"):
        synthesize("gpt2-xl", "nowhere", dtype="int8")
