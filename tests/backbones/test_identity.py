"""Which weights a backbone is made of. Oracle: hashlib over the bytes, and bits changed one at a time."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from torch import nn

from climafuse.backbones import check_identity, hash_files, hash_parameters
from climafuse.backbones.identity import hash_shard, identify
from climafuse.errors import BackboneError, BackboneMismatchError
from tests.tiny import tiny_model


def test_hash_of_files_is_the_hash_of_their_hashes_in_name_order(tmp_path):
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"second")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"first")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"z": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}}'
    )
    first, second = hashlib.sha256(b"first").digest(), hashlib.sha256(b"second").digest()
    assert hash_files(tmp_path) == f"sha256:{hashlib.sha256(first + second).hexdigest()}"


def test_a_shard_is_hashed_again_when_its_size_or_time_changes_or_on_request(tmp_path, cache):
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"aaaa")
    before = hash_shard(shard)
    assert before == hashlib.sha256(b"aaaa").hexdigest()
    status = shard.stat()
    shard.write_bytes(b"bbbb")
    os.utime(
        shard, ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # as rsync --times or an attacker might leave it
    assert hash_shard(shard) == before  # remembered: the price of not reading every byte at every load
    assert hash_shard(shard, verify=True) == hashlib.sha256(b"bbbb").hexdigest()
    assert hash_shard(shard) == hashlib.sha256(b"bbbb").hexdigest()  # and remembered anew
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    shard.write_bytes(b"ccccc")
    assert hash_shard(shard) == hashlib.sha256(b"ccccc").hexdigest()


def test_a_damaged_or_unwritable_memory_of_hashes_only_costs_time(tmp_path, cache):
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"aaaa")
    hash_shard(shard)
    (memory,) = (cache / "hashes").iterdir()
    memory.write_text("{")
    assert hash_shard(shard) == hashlib.sha256(b"aaaa").hexdigest()
    memory.unlink()
    (cache / "hashes").rmdir()
    (cache / "hashes").write_text("a file where the directory should be")
    assert hash_shard(shard) == hashlib.sha256(b"aaaa").hexdigest()


def test_hash_of_parameters_sees_every_bit_of_every_tensor():
    model = tiny_model("gpt2", num_blocks=2)
    before = hash_parameters(model)
    assert hash_parameters(tiny_model("gpt2", num_blocks=2)) == before
    for parameter in model.parameters():
        bits = parameter.data.view(torch.int32).reshape(-1)
        bits[-1] ^= 1
        assert hash_parameters(model) != before
        bits[-1] ^= 1
    assert hash_parameters(model) == before


def test_hash_of_parameters_sees_names_types_and_shapes():
    def module(name="a", tensor=None):
        made = nn.Module()
        made.register_parameter(name, nn.Parameter(torch.zeros(2, 3) if tensor is None else tensor))
        return made

    variants = [
        module(),
        module("b"),
        module(tensor=torch.zeros(3, 2)),
        module(tensor=torch.zeros(2, 3, dtype=torch.bfloat16)),
        module(tensor=torch.zeros(2, 3, dtype=torch.float16)),  # the same bytes
        module(tensor=-torch.zeros(2, 3)),  # equal by value, not by bits
    ]
    assert len({hash_parameters(variant) for variant in variants}) == len(variants)
    with_buffer = module()
    with_buffer.register_buffer("state", torch.tensor(1.0))
    without = module()
    without.register_buffer("state", torch.tensor(1.0), persistent=False)
    assert hash_parameters(with_buffer) != hash_parameters(module()) == hash_parameters(without)


def test_tied_parameters_count_once():
    model = tiny_model("llama", num_blocks=2)  # head tied to the embeddings
    identity = identify(model, id="x", content_hash="sha256:0")
    # By hand, D = 32, V = 364: embeddings V·D; each block: norms 2·32, q 32·32, k and v 16·32 each, o 32·32,
    # gate, up and down 64·32 each; final norm 32.
    assert identity["num_parameters"] == 364 * 32 + 2 * (64 + 1024 + 2 * 512 + 1024 + 3 * 2048) + 32


def _identity(**changes):
    return {
        "id": "tiny",
        "revision": None,
        "content_hash": "sha256:aaaaaaaaaaaaaaaa",
        "architecture": "LlamaForCausalLM",
        "num_parameters": 1,
        "random_weights": False,
        **changes,
    }


def test_the_same_weights_under_another_name_pass():
    check_identity(_identity(), _identity(id="/elsewhere/tiny", revision="abc"))


@pytest.mark.parametrize(
    "changes", [{"content_hash": "sha256:bbbbbbbbbbbbbbbb"}, {"architecture": "MistralForCausalLM"}]
)
def test_other_weights_are_refused_naming_both(changes):
    with pytest.raises(BackboneMismatchError) as caught:
        check_identity(_identity(), _identity(id="other", revision="r7", **changes))
    message = str(caught.value)
    assert "tiny (LlamaForCausalLM, sha256 aaaaaaaaaaaa)" in message
    assert "other (" in message
    assert "revision r7" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ('{"weight_map": {"a": "../outside.safetensors"}}', "plain file names"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "plain file names"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "no model-9.safetensors"),
        ("[]", "weight_map"),
        ("{", "weight_map"),
    ],
)
def test_an_index_that_is_wrong_or_leads_outside_is_refused(tmp_path, index, reason):
    (tmp_path / "outside.safetensors").write_bytes(b"")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BackboneError, match=reason):
        hash_files(directory)
