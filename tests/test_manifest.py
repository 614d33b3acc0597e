"""A manifest vouches for every byte of a folder, its own included."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from climafuse.errors import CheckpointError
from climafuse.manifest import MANIFEST_NAME, verify_folder, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    write_manifest(tmp_path, kind="model", details={"step": 7})
    return tmp_path


def test_manifest_holds_size_and_checksum_of_every_file(folder: Path) -> None:
    manifest = verify_folder(folder)
    assert manifest["kind"] == "model"
    assert manifest["details"] == {"step": 7}
    assert manifest["files"]["model.safetensors"] == {
        "size": 1024,
        "sha256": hashlib.sha256(bytes(range(256)) * 4).hexdigest(),
    }
    assert set(manifest["files"]) == {"model.safetensors", "tokenizer/vocab.json"}
    assert set(manifest["versions"]) >= {"climafuse", "torch", "transformers", "python"}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/vocab.json"])
def test_every_flipped_byte_is_found(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        verify_folder(folder)
    assert Path(name).name in caught.value.argument


def test_every_byte_of_the_manifest_matters(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        if bad.split() == good.split():
            continue  # white space between entries
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            verify_folder(folder)


def test_truncated_file_is_found_by_its_size(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*1024 bytes.*1000 bytes"):
        verify_folder(folder)


def test_missing_and_extra_files_are_named(folder: Path) -> None:
    (folder / "extra.bin").write_text("?")
    with pytest.raises(CheckpointError, match=r"extra\.bin.*added later"):
        verify_folder(folder)
    (folder / "extra.bin").unlink()
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.json.*no such file"):
        verify_folder(folder)


def test_no_folder_and_no_manifest(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        verify_folder(folder / "nowhere")
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="saving did not finish"):
        verify_folder(folder)


def test_model_card_and_hidden_entries_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("my words")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "hub.lock").write_text("")
    verify_folder(folder)


def test_manifest_of_a_later_format_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["format"] = 2
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format 2"):
        verify_folder(folder)
