"""The findings of `climafuse doctor`, where things are right and where they are not."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from climafuse import doctor
from climafuse.backbones.cache import MANIFEST_NAME, write_manifest
from climafuse.errors import ClimateFileError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "not" / "there" / "yet"))
    samples = types.ModuleType("climafuse.data.samples")
    samples.SAMPLES = {"era5": None}
    samples.sample_path = lambda name: Path(name)
    monkeypatch.setitem(sys.modules, "climafuse.data.samples", samples)
    return tmp_path / "not" / "there" / "yet"


def _find(name: str) -> doctor.Check:
    (check,) = [check for check in doctor.collect() if check.name == name]
    return check


def test_what_is_missing_comes_with_a_remedy():
    checks = doctor.collect()
    names = [check.name for check in checks]
    assert names[:2] == ["climafuse", "python"]
    assert {"machine", "device", "cache", "samples", "default backbone"} <= set(names)
    assert all(check.remedy for check in checks if not check.ok)


def test_looking_writes_nothing(home):
    assert _find("cache").ok
    assert not home.exists()


def test_a_cache_that_is_a_file_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "file"))
    check = _find("cache")
    assert not check.ok
    assert "CLIMAFUSE_HOME" in check.remedy


def test_the_default_backbone_is_missing_then_there_then_damaged(home):
    assert "climafuse backbone fetch smollm2-135m-instruct-q4_1" in _find("default backbone").remedy
    directory = home / "backbones" / "smollm2-135m-instruct-q4_1"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    write_manifest(directory, id=directory.name)
    assert _find("default backbone") == doctor.Check(
        "default backbone", True, f"{directory.name} in {directory}"
    )
    (directory / "model.safetensors").write_bytes(b"weigh")
    damaged = _find("default backbone")
    assert not damaged.ok
    assert "model.safetensors altered" in damaged.detail


def test_imported_backbones_are_listed(home):
    directory = home / "backbones" / "mine"
    directory.mkdir(parents=True)
    write_manifest(directory, id="mine")
    assert _find("backbone").detail == f"mine in {directory}"
    (directory / MANIFEST_NAME).unlink()
    write_manifest(directory, id="mine", random_weights=True)
    assert _find("backbone").detail == f"mine in {directory} (random weights, for capacity only)"


def test_without_pip_the_remedy_says_so_first(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "pip" else find(name, *args)
    )
    assert _find("default backbone").remedy.startswith("Install pip first")


def test_a_package_that_is_too_old_or_absent_is_named(monkeypatch):
    wanted = ["numpy>=999", "no-such-package-at-all>=1", "pytest>=1", "left-out>=1; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = {check.name: check for check in doctor.collect()}
    assert not found["numpy"].ok
    assert found["numpy"].remedy == "Install it: pip install 'numpy>=999'"
    assert found["no-such-package-at-all"].detail == "not installed"
    assert found["pytest"].ok
    assert "left-out" not in found


def test_a_damaged_sample_is_a_finding_in_its_own_words(monkeypatch):
    def damaged(name):
        raise ClimateFileError(name, expected="its checksum", received="another", remedy="Restore it.")

    monkeypatch.setattr(sys.modules["climafuse.data.samples"], "sample_path", damaged)
    check = _find("samples")
    assert (check.ok, check.remedy) == (False, "Restore it.")
    assert "expected its checksum; received another" in check.detail


def test_little_memory_is_a_finding(monkeypatch):
    import psutil

    memory = types.SimpleNamespace(available=2**30, total=4 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    check = _find("machine")
    assert not check.ok
    assert "1.0 of 4.0 GiB" in check.detail
